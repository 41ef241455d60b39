#include "moetrace/stats/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>

#include "moetrace/stats/resample.h"
#include "moetrace/stats/statistic.h"

namespace moetrace::stats {

namespace {

/// Bytes that the draws may take when all threads share them, and that the replicates may take.
constexpr std::size_t kMemoryBudget = std::size_t{128} << 20;
/// Resamples that are drawn together.
constexpr std::size_t kPart = 256;

Grouping grouping_of(Labels labels, const BootstrapOptions& options) {
  return {labels, options.clusters, options.two_stage};
}

/// All resamples of a bootstrap: drawn once where they fit into memory, else again for every block of
/// columns.
class Resamples {
 public:
  Resamples(std::size_t cases, const Grouping& grouping, const BootstrapOptions& options,
            const Interrupt& interrupt)
      : resampler_(cases, grouping), options_(options), parts_(ceil_div(options.resamples, kPart)) {
    if (resampler_.bytes_of_resample() * options.resamples > kMemoryBudget) return;
    shared_.resize(parts_);
    parallel_for(parts_, options.threads, interrupt,
                 [&](std::size_t part, Worker&) { shared_[part] = drawn(part); });
  }

  /// visit(number, rows, cases) for every resample, in order.
  template <class Visit>
  void for_each(Worker& worker, const Visit& visit) const {
    for (std::size_t part = 0; part < parts_; ++part) {
      worker.check();
      const Draws own = shared_.empty() ? drawn(part) : Draws();
      const Draws& draws = shared_.empty() ? own : shared_[part];
      for (std::size_t i = 0; i < draws.count(); ++i) {
        visit(part * kPart + i, draws.rows_of(i), draws.cases[i]);
      }
    }
  }

 private:
  Draws drawn(std::size_t part) const {
    const std::size_t first = part * kPart;
    return resampler_.draw(options_.seed, first, std::min(kPart, options_.resamples - first));
  }

  Resampler resampler_;
  const BootstrapOptions& options_;
  std::size_t parts_;
  std::vector<Draws> shared_;
};

/// The replicates of eight columns, and what of them is added up on the way.
struct Replicates {
  Eigen::Array<double, Eigen::Dynamic, kLanes> values;  // column by column
  Lanes sum, squares;                                   // of value - estimate

  void make(BlockStatistic& statistic, const Resamples& resamples, std::size_t count, Worker& worker) {
    values.resize(static_cast<Eigen::Index>(count), kLanes);
    sum = squares = Lanes::Zero();
    resamples.for_each(worker, [&](std::size_t b, std::span<const std::uint32_t> rows, double cases) {
      const Lanes value = statistic.replicate(rows, cases);
      const Lanes apart = value - statistic.estimate;
      sum += apart;
      squares += apart.square();
      values.row(static_cast<Eigen::Index>(b)) = value;
    });
  }

  std::span<double> of_lane(std::size_t lane) {
    const auto count = static_cast<std::size_t>(values.rows());
    return {values.data() + lane * count, count};
  }
};

/// Standard deviation of `count` values of these sums.
Lanes spread_of(const Lanes& sum, const Lanes& squares, double count) {
  const Lanes central = squares - sum * (sum / count);
  return (central.max(0.0) / (count - 1.0)).sqrt();
}

/// Share of the values below the estimate, ties counting half.
double share_below(std::span<const double> values, double estimate, double noise) {
  const double low = estimate - noise;
  const double high = estimate + noise;
  std::int64_t below = 0;
  std::int64_t not_above = 0;
  for (const double value : values) {
    below += value < low;
    not_above += value <= high;
  }
  return static_cast<double>(below + not_above) / 2.0 / static_cast<double>(values.size());
}

/// Reads the intervals of eight columns off their replicates, which are reordered.
void read_block(const BlockStatistic& statistic, const BootstrapOptions& options, std::size_t first,
                Replicates& replicates, BootstrapIntervals& out) {
  const auto* pivot = statistic.pivot();
  const auto count = static_cast<double>(options.resamples);
  const Lanes error = pivot != nullptr ? spread_of(pivot->sum, pivot->squares, count)
                                       : spread_of(replicates.sum, replicates.squares, count);
  const bool bca = options.interval == Interval::bca;
  const Lanes acceleration = bca ? jackknife_acceleration(statistic.leave_one_out()) : Lanes::Zero();
  for (std::size_t lane = 0; lane < statistic.used; ++lane) {
    const auto at = static_cast<Eigen::Index>(lane);
    const std::size_t column = first + lane;
    const double estimate = statistic.estimate[at];
    const auto write = [&](double low, double high, double standard_error) {
      const int exponent = statistic.exponents[lane];
      out.estimate[column] = std::ldexp(estimate, exponent);
      out.low[column] = std::ldexp(low, exponent);
      out.high[column] = std::ldexp(high, exponent);
      out.standard_error[column] = std::ldexp(standard_error, exponent);
    };
    out.degenerate[column] = error[at] <= statistic.noise[at];
    if (out.degenerate[column] != 0) {
      write(estimate, estimate, 0.0);
      continue;
    }
    const std::span<double> values = replicates.of_lane(lane);
    const auto levels =
        bca ? bca_levels(options.confidence, share_below(values, estimate, statistic.noise[at]),
                         acceleration[at], options.resamples)
            : central_levels(options.confidence);
    const auto [low, high] = quantile_pair(values, levels);
    if (pivot != nullptr) {
      write(estimate - high * pivot->error[at], estimate - low * pivot->error[at], error[at]);
    } else if (options.interval == Interval::basic) {
      write(2.0 * estimate - high, 2.0 * estimate - low, error[at]);
    } else {
      write(low, high, error[at]);
    }
  }
}

BootstrapIntervals run(const MakeStatistic& make, const MatrixView& x, Labels labels,
                       const BootstrapOptions& options, const Interrupt& interrupt) {
  const std::size_t bytes_of_block = options.resamples * sizeof(Lanes);
  const std::size_t threads =
      std::clamp<std::size_t>(kMemoryBudget / bytes_of_block, 1, std::max<std::size_t>(options.threads, 1));
  const Resamples resamples(static_cast<std::size_t>(x.rows()), grouping_of(labels, options), options,
                            interrupt);
  BootstrapIntervals out(static_cast<std::size_t>(x.cols()));
  std::vector<Replicates> memory(threads);
  parallel_for(ceil_div(out.estimate.size(), kLanes), threads, interrupt,
               [&](std::size_t block, Worker& worker) {
                 Replicates& replicates = memory[worker.index()];
                 const auto statistic = make(block * kLanes);
                 replicates.make(*statistic, resamples, options.resamples, worker);
                 read_block(*statistic, options, block * kLanes, replicates, out);
               });
  return out;
}

void refuse_studentized(const BootstrapOptions& options) {
  if (options.interval != Interval::studentized) return;
  throw std::invalid_argument("a studentised interval is made for a mean only");
}

}  // namespace

BootstrapIntervals bootstrap_mean(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                  const Interrupt& interrupt) {
  if (options.interval != Interval::studentized) {
    return run(mean_statistic(x, grouping_of(labels, options)), x, labels, options, interrupt);
  }
  if (!labels.empty()) throw std::invalid_argument("a studentised interval is made without clusters only");
  return run(studentized_statistic(x), x, labels, options, interrupt);
}

BootstrapIntervals bootstrap_ratio(const MatrixView& x, const MatrixView& y, Labels labels,
                                   const BootstrapOptions& options, const Interrupt& interrupt) {
  if (x.rows() != y.rows() || x.cols() != y.cols()) {
    throw std::invalid_argument("numerators and denominators differ in shape");
  }
  refuse_studentized(options);
  return run(ratio_statistic(x, y, grouping_of(labels, options)), x, labels, options, interrupt);
}

BootstrapIntervals bootstrap_quantile(const MatrixView& x, double q, Labels labels,
                                      const BootstrapOptions& options, const Interrupt& interrupt) {
  if (!(q >= 0.0 && q <= 1.0)) throw std::invalid_argument("a quantile's level lies between 0 and 1");
  refuse_studentized(options);
  return run(quantile_statistic(x, q, grouping_of(labels, options)), x, labels, options, interrupt);
}

std::vector<double> mean_replicates(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                    const Interrupt& interrupt) {
  const Grouping grouping = grouping_of(labels, options);
  const Resamples resamples(static_cast<std::size_t>(x.rows()), grouping, options, interrupt);
  const MakeStatistic make = mean_statistic(x, grouping);
  const auto columns = static_cast<std::size_t>(x.cols());
  std::vector<double> out(options.resamples * columns);
  parallel_for(ceil_div(columns, kLanes), options.threads, interrupt, [&](std::size_t block, Worker& worker) {
    const auto mean = make(block * kLanes);
    resamples.for_each(worker, [&](std::size_t b, std::span<const std::uint32_t> rows, double cases) {
      const Lanes value = mean->replicate(rows, cases);
      for (std::size_t lane = 0; lane < mean->used; ++lane) {
        out[b * columns + block * kLanes + lane] =
            std::ldexp(value[static_cast<Eigen::Index>(lane)], mean->exponents[lane]);
      }
    });
  });
  return out;
}

}  // namespace moetrace::stats
