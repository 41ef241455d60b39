#include "moetrace/stats/narrow_means.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "moetrace/stats/exact_quantile.h"
#include "moetrace/stats/interval.h"
#include "moetrace/stats/narrow_block.h"
#include "moetrace/stats/resamples.h"

namespace moetrace::stats {

namespace {

constexpr std::size_t kWidth = NarrowBlock::kWidth;
constexpr std::size_t kMostDraws = 4096;
constexpr double kFloatError = 0x1p-22;  // of a near value, by its conversions

/// One thread's memory.
struct Scratch {
  NarrowBlock block;
  AlignedBuffer<std::int32_t> table;
  AlignedBuffer<std::int32_t> values;    // [resample][lane]: sums, and then floats
  AlignedBuffer<std::uint32_t> places;   // of values in the windows
  AlignedBuffer<float> found;            // and these values
  std::vector<NearKey> keys[2][kWidth];  // of each window
  std::vector<double> leave_one_out;
};

/// What is known of a block's replicates: of their distance from the estimate, in units of the sums.
struct Spread {
  alignas(kLineBytes) double sum[kWidth], squares[kWidth], cubes[kWidth];
  alignas(kLineBytes) std::int64_t below[kWidth], not_above[kWidth];

  Moments moments(std::size_t lane, double count) const {
    const double shift = sum[lane] / count;
    const double central = std::max(0.0, squares[lane] - sum[lane] * shift);
    const double third = cubes[lane] - 3.0 * shift * squares[lane] + 2.0 * shift * shift * sum[lane];
    const double scale = central * std::sqrt(central / count);
    return {shift, std::sqrt(central / (count - 1.0)), scale > 0.0 ? third / scale : 0.0};
  }
};

class NarrowMeans {
 public:
  NarrowMeans(const MatrixView& x, Labels labels, const BootstrapOptions& options, const Resampler& resampler,
              const Interrupt& interrupt)
      : options_(options),
        resampler_(resampler),
        rows_(x, labels, options.clusters, !labels.empty() && !options.two_stage),
        units_(x, labels, options.clusters, !labels.empty()),
        unit_sizes_(cluster_sizes(static_cast<std::size_t>(x.rows()), labels, options.clusters)),
        cases_(static_cast<double>(x.rows())),
        count_(static_cast<double>(options.resamples)),
        resamples_(resampler, options, plan_bytes(resampler.rows()), 3 * kLineBytes, interrupt) {
    const bool rows_are_units = labels.empty() || !options.two_stage;
    for (std::size_t row = 0; row < resampler.rows(); ++row) {
      shares_.push_back((rows_are_units ? unit_sizes_[row] : 1.0) / cases_);
    }
  }

  BootstrapIntervals run(const Interrupt& interrupt) const {
    const auto columns = static_cast<std::size_t>(rows_.view().cols());
    BootstrapIntervals out(columns);
    std::vector<Scratch> memory(resamples_.threads());
    parallel_for(ceil_div(columns, kWidth), resamples_.threads(), interrupt,
                 [&](std::size_t index, Worker& worker) {
                   run_block(index * kWidth, memory[worker.index()], worker, out);
                 });
    return out;
  }

 private:
  void run_block(std::size_t first, Scratch& scratch, Worker& worker, BootstrapIntervals& out) const {
    scratch.block.load(rows_.view(), first, shares_, resampler_.most_draws());
    std::int32_t* values = scratch.values.reserve(ceil_div(options_.resamples, kBundle) * kBundle * kWidth);
    std::vector<double> weights;
    resamples_.for_each_slice(worker, [&](const ResamplePlan& plan, const Slice& slice, std::size_t start) {
      plan.weighted_sums(slice, scratch.block.whole.data(), scratch.table, values + start * kWidth);
      if (resampler_.constant_size()) return;
      for (const double size : plan.sizes(slice)) weights.push_back(cases_ / size);
    });
    read_block(first, weights, scratch, worker, out);
  }

  /// Where the ends of the intervals are looked for: window 0 for the lower, 1 for the upper.
  struct Windows {
    bool wanted[kWidth] = {};
    double levels[2][kWidth];
    alignas(kLineBytes) float low[2][kWidth];
    alignas(kLineBytes) float high[2][kWidth];
    std::int64_t below[2][kWidth];

    Windows() {
      for (std::size_t w = 0; w < 2; ++w) {
        std::fill_n(low[w], kWidth, std::numeric_limits<float>::infinity());
        std::fill_n(high[w], kWidth, -std::numeric_limits<float>::infinity());
      }
    }
    void set(std::size_t lane, std::pair<double, double> at, std::size_t count, const Moments& moments) {
      wanted[lane] = true;
      levels[0][lane] = at.first;
      levels[1][lane] = at.second;
      for (std::size_t w = 0; w < 2; ++w) {
        const auto [from, to] = quantile_window(levels[w][lane], count, moments);
        low[w][lane] = static_cast<float>(from);
        high[w][lane] = static_cast<float>(to);
      }
    }
    bool holds(std::size_t w, std::size_t lane, float value) const {
      return value >= low[w][lane] && value <= high[w][lane];
    }
  };

  void read_block(std::size_t first, const std::vector<double>& weights, Scratch& scratch, Worker& worker,
                  BootstrapIntervals& out) const {
    const NarrowBlock& block = scratch.block;
    Spread spread;
    alignas(kLineBytes) std::int32_t tie[kWidth];
    for (std::size_t lane = 0; lane < kWidth; ++lane) {
      tie[lane] = static_cast<std::int32_t>(std::ceil(error(block, lane)));
    }
    kernels().tally_narrow(scratch.values.data(), options_.resamples,
                           weights.empty() ? nullptr : weights.data(), tie, spread.sum, spread.squares,
                           spread.cubes, spread.below, spread.not_above);
    const double heaviest = weights.empty() ? 1.0 : *std::max_element(weights.begin(), weights.end());
    Windows windows;
    for (std::size_t lane = 0; lane < block.used; ++lane) {
      const Moments moments = spread.moments(lane, count_);
      const double standard_error = moments.spread * block.unit[lane] / cases_;
      const std::size_t column = first + lane;
      out.estimate[column] = out.low[column] = out.high[column] = block.total[lane] / cases_;
      out.degenerate[column] = !block.varies[lane] || standard_error <= block.noise[lane] / cases_;
      if (out.degenerate[column] != 0) continue;
      out.standard_error[column] = standard_error;
      windows.set(lane, levels(spread, lane, first, heaviest, scratch), options_.resamples, moments);
    }
    search(windows, scratch);
    for (std::size_t lane = 0; lane < block.used; ++lane) {
      if (!windows.wanted[lane]) continue;
      worker.check();
      const ExactQuantile exact = exact_quantile(lane, heaviest, scratch);
      const double low = quantile(exact, windows, 0, lane, scratch);
      const double high = quantile(exact, windows, 1, lane, scratch);
      out.set_interval(first + lane, options_.interval, low, high);
    }
  }

  /// How far a sum of whole numbers may be from what it stands for.
  double error(const NarrowBlock& block, std::size_t lane) const {
    return block.rounding[lane] * static_cast<double>(resampler_.most_draws());
  }

  ExactQuantile exact_quantile(std::size_t lane, double heaviest, Scratch& scratch) const {
    return ExactQuantile(options_.resamples, 2.0 * error(scratch.block, lane) * heaviest, 2.0 * kFloatError,
                         [this, lane, &scratch](std::uint32_t b) {
                           return resamples_.mean_of(b, scratch.block.column(lane));
                         });
  }

  std::pair<double, double> levels(const Spread& spread, std::size_t lane, std::size_t first, double heaviest,
                                   Scratch& scratch) const {
    if (options_.interval != Interval::bca) return central_levels(options_.confidence);
    auto& without = scratch.leave_one_out;
    without.resize(unit_sizes_.size());
    for (std::size_t i = 0; i < without.size(); ++i) {
      const double left_out = options_.two_stage ? units_.view()(static_cast<Eigen::Index>(i),
                                                                 static_cast<Eigen::Index>(first + lane))
                                                 : scratch.block.column(lane)[i];
      without[i] = (scratch.block.total[lane] - left_out) / (cases_ - unit_sizes_[i]);
    }
    return bca_levels(options_.confidence, share_below(spread, lane, heaviest, scratch),
                      jackknife_acceleration(without), options_.resamples);
  }

  /// Share of the replicates below the estimate, ties counting half. Those that are too near to be told from
  /// the estimate are evaluated.
  double share_below(const Spread& spread, std::size_t lane, double heaviest, Scratch& scratch) const {
    if (spread.not_above[lane] == spread.below[lane]) return static_cast<double>(spread.below[lane]) / count_;
    const auto reach = static_cast<float>((std::ceil(error(scratch.block, lane)) + 0.5) * heaviest);
    std::size_t certain = 0;
    auto& keys = scratch.keys[0][lane];
    keys.clear();
    for (std::uint32_t b = 0; b < options_.resamples; ++b) {
      const float value = near_value(scratch, b * kWidth + lane);
      certain += value < -reach;
      if (std::fabs(value) <= reach) keys.push_back(near_key(value, b));
    }
    std::sort(keys.begin(), keys.end());
    auto below = static_cast<double>(certain);
    const double noise = scratch.block.noise[lane] / cases_;
    const double estimate = scratch.block.total[lane] / cases_;
    for (const double value : exact_quantile(lane, heaviest, scratch).evaluate(keys)) {
      below += value < estimate - noise ? 1.0 : value <= estimate + noise ? 0.5 : 0.0;
    }
    return below / count_;
  }

  void search(Windows& windows, Scratch& scratch) const {
    const std::size_t room = kWidth * (options_.resamples + 1);
    std::uint32_t* places = scratch.places.reserve(room);
    float* found = scratch.found.reserve(room);
    const std::size_t number =
        kernels().find_in_windows(reinterpret_cast<const float*>(scratch.values.data()), options_.resamples,
                                  windows.low, windows.high, places, found, windows.below);
    for (auto& of_window : scratch.keys) {
      for (auto& keys : of_window) keys.clear();
    }
    for (std::size_t i = 0; i < number; ++i) {
      const std::size_t lane = places[i] % kWidth;
      const NearKey key = near_key(found[i], places[i] / kWidth);
      if (windows.holds(0, lane, found[i])) scratch.keys[0][lane].push_back(key);
      if (windows.holds(1, lane, found[i])) scratch.keys[1][lane].push_back(key);
    }
  }

  static float near_value(const Scratch& scratch, std::size_t place) {
    return std::bit_cast<float>(scratch.values.data()[place]);
  }

  double quantile(const ExactQuantile& exact, const Windows& windows, std::size_t w, std::size_t lane,
                  Scratch& scratch) const {
    auto& keys = scratch.keys[w][lane];
    const KnownRange window{keys, static_cast<std::size_t>(windows.below[w][lane]), windows.low[w][lane],
                            windows.high[w][lane]};
    if (const auto found = exact(window, windows.levels[w][lane])) return *found;
    keys.resize(options_.resamples);
    for (std::uint32_t b = 0; b < keys.size(); ++b)
      keys[b] = near_key(near_value(scratch, b * kWidth + lane), b);
    return exact({keys}, windows.levels[w][lane]).value();
  }

  const BootstrapOptions& options_;
  const Resampler& resampler_;
  Rows rows_;
  Rows units_;
  std::vector<double> unit_sizes_;
  std::vector<double> shares_;  // of a row in the cases
  double cases_;
  double count_;
  Resamples resamples_;
};

}  // namespace

bool fits_narrow_means(const Resampler& resampler) { return resampler.most_draws() <= kMostDraws; }

BootstrapIntervals bootstrap_narrow_means(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                          const Resampler& resampler, const Interrupt& interrupt) {
  return NarrowMeans(x, labels, options, resampler, interrupt).run(interrupt);
}

}  // namespace moetrace::stats
