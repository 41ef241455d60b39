#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "moetrace/stats/block_source.h"
#include "moetrace/stats/bootstrap.h"
#include "moetrace/stats/resamples.h"

namespace moetrace::stats {

namespace {

/// The rows of a column by value.
struct SortedColumn {
  std::vector<double> values;
  std::vector<std::uint32_t> rows;

  SortedColumn(const MatrixView& x, std::size_t column)
      : values(static_cast<std::size_t>(x.rows())), rows(values.size()) {
    const auto at = static_cast<Eigen::Index>(column);
    std::iota(rows.begin(), rows.end(), 0U);
    std::stable_sort(rows.begin(), rows.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return x(a, at) < x(b, at); });
    for (std::size_t i = 0; i < rows.size(); ++i) values[i] = x(rows[i], at);
  }

  /// The quantile of the values, value i counted counts(rows[i]) times.
  template <class CountOf>
  double quantile(double q, double size, const CountOf& count_of) const {
    const double at = (size - 1.0) * q;
    const double whole = std::floor(at);
    double passed = 0.0;
    std::size_t i = 0;
    while ((passed += count_of(rows[i])) <= whole) ++i;
    if (at == whole || passed > whole + 1.0) return values[i];
    std::size_t next = i + 1;
    while (count_of(rows[next]) == 0.0) ++next;
    return values[i] + (values[next] - values[i]) * (at - whole);
  }
};

/// Bootstrap of a quantile, a column at a time: every resample walks along the sorted column.
class QuantileBootstrap {
 public:
  QuantileBootstrap(const MatrixView& x, double q, Labels labels, const BootstrapOptions& options)
      : x_(x),
        q_(q),
        labels_(labels),
        options_(options),
        cases_(static_cast<std::size_t>(x.rows())),
        threads_(std::clamp<std::size_t>(kMemoryBudget / (options.resamples * 2 * sizeof(double)), 1,
                                         std::max<std::size_t>(options.threads, 1))),
        chunk_(std::clamp<std::size_t>(kMemoryBudget / (cases_ * sizeof(std::uint32_t) * threads_), 1,
                                       options.resamples)) {
    if (shared()) shared_ = resample_counts(cases_, labels, options, 0, options.resamples);
  }

  std::size_t threads() const { return threads_; }

  void run(std::size_t column, Worker& worker, BootstrapIntervals& out) const {
    const SortedColumn sorted(x_, column);
    const double estimate =
        sorted.quantile(q_, static_cast<double>(cases_), [](std::uint32_t) { return 1.0; });
    std::vector<double> values(options_.resamples);
    for (std::size_t begin = 0; begin < values.size(); begin += chunk_) {
      const std::size_t end = std::min(values.size(), begin + chunk_);
      const auto own = shared() ? std::vector<std::uint32_t>()
                                : resample_counts(cases_, labels_, options_, begin, end - begin);
      const std::uint32_t* counts = shared() ? shared_.data() : own.data();
      for (std::size_t b = begin; b < end; ++b, counts += cases_) {
        if (b % 1024 == 0) worker.check();
        const double size = std::accumulate(counts, counts + cases_, 0.0);
        values[b] =
            sorted.quantile(q_, size, [&](std::uint32_t row) { return static_cast<double>(counts[row]); });
      }
    }
    write(sorted, estimate, column, values, out);
  }

 private:
  /// Whether all counts are held at once, and then by all threads together.
  bool shared() const { return chunk_ == options_.resamples; }

  /// The quantile without each case, or without each cluster.
  std::vector<double> leave_one_out(const SortedColumn& sorted) const {
    const std::size_t units = labels_.empty() ? cases_ : options_.clusters;
    const auto sizes = cluster_sizes(cases_, labels_, options_.clusters);
    std::vector<double> values(units);
    for (std::size_t unit = 0; unit < units; ++unit) {
      const double left = static_cast<double>(cases_) - sizes[unit];
      values[unit] = sorted.quantile(q_, left, [&](std::uint32_t row) {
        const std::size_t own = labels_.empty() ? row : static_cast<std::size_t>(labels_[row]);
        return own == unit ? 0.0 : 1.0;
      });
    }
    return values;
  }

  void write(const SortedColumn& sorted, double estimate, std::size_t column, std::vector<double>& values,
             BootstrapIntervals& out) const {
    const auto count = static_cast<double>(values.size());
    double mean = 0.0;
    double squares = 0.0;
    double below = 0.0;
    for (const double value : values) {
      mean += (value - estimate) / count;
      below += value < estimate ? 1.0 : value == estimate ? 0.5 : 0.0;
    }
    mean += estimate;
    for (const double value : values) squares += (value - mean) * (value - mean);
    const double spread = std::sqrt(squares / (count - 1.0));
    out.estimate[column] = out.low[column] = out.high[column] = estimate;
    out.standard_error[column] = spread;
    out.degenerate[column] = spread == 0.0;
    if (spread == 0.0) return;
    auto levels = central_levels(options_.confidence);
    if (options_.interval == Interval::bca) {
      const double acceleration = jackknife_acceleration(leave_one_out(sorted));
      levels = bca_levels(options_.confidence, below / count, acceleration, values.size());
    }
    std::vector<double> scratch(values.size());
    const auto [low, high] = quantile_pair(values.data(), 1, values.size(), levels, scratch.data());
    out.set_interval(column, options_.interval, low, high);
  }

  MatrixView x_;
  double q_;
  Labels labels_;
  const BootstrapOptions& options_;
  std::size_t cases_;
  std::size_t threads_;
  std::size_t chunk_;  // resamples whose counts are held at the same time
  std::vector<std::uint32_t> shared_;
};

}  // namespace

BootstrapIntervals bootstrap_quantile(const MatrixView& x, double q, Labels labels,
                                      const BootstrapOptions& options, const Interrupt& interrupt) {
  if (!(q >= 0.0 && q <= 1.0)) throw std::invalid_argument("a quantile's level lies between 0 and 1");
  if (options.interval == Interval::studentized) {
    throw std::invalid_argument("a studentised interval is made for a mean only");
  }
  const QuantileBootstrap bootstrap(x, q, labels, options);
  BootstrapIntervals out(static_cast<std::size_t>(x.cols()));
  parallel_for(out.estimate.size(), bootstrap.threads(), interrupt,
               [&](std::size_t column, Worker& worker) { bootstrap.run(column, worker, out); });
  return out;
}

}  // namespace moetrace::stats
