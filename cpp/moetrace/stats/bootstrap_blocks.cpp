#include <cmath>
#include <limits>
#include <span>

#include "moetrace/stats/block_source.h"
#include "moetrace/stats/resamples.h"

namespace moetrace::stats {

namespace {

/// One thread's memory.
struct Scratch {
  Block block;
  AlignedBuffer<double> values;  // [resamples][kLanes]
  AlignedBuffer<double> tails;   // [kLanes][resamples]
  std::vector<double> leave_one_out;
};

/// What eight columns of replicates look like, in the units of the source.
struct Shape {
  double count;
  alignas(64) LaneArray origin, low, high, sum, squares, cubes;
  alignas(64) std::int64_t below[kLanes], not_above[kLanes];

  Shape(const BlockSource& source, const Block& block, const double* values, std::size_t resamples)
      : count(static_cast<double>(resamples)) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      origin[lane] = source.pivotal() ? 0.0 : block.estimate[lane] * source.unit();
      low[lane] = origin[lane] - block.noise[lane] * source.unit();
      high[lane] = origin[lane] + block.noise[lane] * source.unit();
    }
    kernels().tally(values, resamples, origin, low, high, sum, squares, cubes, below, not_above);
  }

  Moments moments(std::size_t lane) const {
    const double shift = sum[lane] / count;
    const double central = std::max(0.0, squares[lane] - sum[lane] * shift);
    const double third = cubes[lane] - 3.0 * shift * squares[lane] + 2.0 * shift * shift * sum[lane];
    const double scale = central * std::sqrt(central / count);
    return {origin[lane] + shift, std::sqrt(central / (count - 1.0)), scale > 0.0 ? third / scale : 0.0};
  }

  /// Share of the replicates below the estimate, ties counting half.
  double share_below(std::size_t lane) const {
    return static_cast<double>(below[lane] + not_above[lane]) / 2.0 / count;
  }
};

/// Turns a block of replicates into intervals.
class Reader {
 public:
  Reader(const BlockSource& source, const BootstrapOptions& options, BootstrapIntervals& out)
      : source_(source), options_(options), out_(out) {}

  void read(Scratch& scratch, Worker& worker) const {
    const Shape shape(source_, scratch.block, scratch.values.data(), options_.resamples);
    std::pair<double, double> levels[kLanes];
    alignas(64) LaneArray centre{};
    alignas(64) LaneArray reach;
    std::fill(reach, reach + kLanes, std::numeric_limits<double>::infinity());  // nothing lies that far out
    bool varies[kLanes] = {};
    for (std::size_t lane = 0; lane < scratch.block.used; ++lane) {
      varies[lane] = write_error(shape, lane, scratch.block);
      if (!varies[lane]) continue;
      levels[lane] = levels_of(shape, lane, scratch);
      const Moments moments = shape.moments(lane);
      const double low = quantile_window(levels[lane].first, options_.resamples, moments).second;
      const double high = quantile_window(levels[lane].second, options_.resamples, moments).first;
      centre[lane] = low + (high - low) / 2.0;
      reach[lane] = (high - low) / 2.0;
    }
    double* tails[kLanes];
    std::int64_t taken[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      tails[lane] = scratch.tails.reserve(kLanes * options_.resamples) + lane * options_.resamples;
    }
    kernels().collect_outside(scratch.values.data(), options_.resamples, centre, reach, tails, taken);
    for (std::size_t lane = 0; lane < scratch.block.used; ++lane) {
      if (!varies[lane]) continue;
      worker.check();
      const std::span<double> beyond(tails[lane], static_cast<std::size_t>(taken[lane]));
      auto found = quantiles_of_tails(beyond, centre[lane], options_.resamples, levels[lane]);
      if (!found) {
        found = quantile_pair(scratch.values.data() + lane, kLanes, options_.resamples, levels[lane],
                              tails[lane]);
      }
      write_interval(*found, lane, scratch.block);
    }
  }

 private:
  std::pair<double, double> levels_of(const Shape& shape, std::size_t lane, Scratch& scratch) const {
    if (options_.interval != Interval::bca) return central_levels(options_.confidence);
    source_.leave_one_out(scratch.block, lane, scratch.leave_one_out);
    return bca_levels(options_.confidence, shape.share_below(lane),
                      jackknife_acceleration(scratch.leave_one_out), options_.resamples);
  }

  /// Writes all but the interval; returns whether there is one to be found.
  bool write_error(const Shape& shape, std::size_t lane, const Block& block) const {
    const std::size_t column = block.first + lane;
    double error = shape.moments(lane).spread / source_.unit();
    if (source_.pivotal()) {
      const double central = block.squares[lane] - block.sum[lane] * block.sum[lane] / shape.count;
      error = std::sqrt(std::max(0.0, central) / (shape.count - 1.0));
    }
    out_.estimate[column] = out_.low[column] = out_.high[column] = block.estimate[lane];
    out_.degenerate[column] = error <= block.noise[lane];
    if (out_.degenerate[column] == 0) out_.standard_error[column] = error;
    return out_.degenerate[column] == 0;
  }

  void write_interval(std::pair<double, double> quantiles, std::size_t lane, const Block& block) const {
    const std::size_t column = block.first + lane;
    const double low = quantiles.first / source_.unit();
    const double high = quantiles.second / source_.unit();
    if (source_.pivotal()) {
      out_.low[column] = block.estimate[lane] - high * block.error[lane];
      out_.high[column] = block.estimate[lane] - low * block.error[lane];
    } else {
      out_.set_interval(column, options_.interval, low, high);
    }
  }

  const BlockSource& source_;
  const BootstrapOptions& options_;
  BootstrapIntervals& out_;
};

}  // namespace

BootstrapIntervals bootstrap_blocks(const BlockSource& source, const Resampler& resampler,
                                    const BootstrapOptions& options, const Interrupt& interrupt) {
  const Resamples resamples(resampler, options, plan_bytes(resampler.rows()), 2 * kLanes * sizeof(double),
                            interrupt);
  BootstrapIntervals out(source.columns());
  const Reader reader(source, options, out);
  std::vector<Scratch> memory(resamples.threads());
  const auto run_block = [&](std::size_t index, Worker& worker) {
    Scratch& scratch = memory[worker.index()];
    source.load(index * kLanes, scratch.block);
    double* values = scratch.values.reserve(sums_of(options.resamples));
    resamples.for_each_slice(worker, [&](const ResamplePlan& plan, const Slice& slice, std::size_t first) {
      source.replicate(plan, slice, scratch.block, values + first * kLanes);
    });
    reader.read(scratch, worker);
  };
  parallel_for(ceil_div(source.columns(), kLanes), resamples.threads(), interrupt, run_block);
  return out;
}

}  // namespace moetrace::stats
