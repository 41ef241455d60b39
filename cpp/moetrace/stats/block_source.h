#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "moetrace/stats/bootstrap.h"
#include "moetrace/stats/matrix.h"
#include "moetrace/stats/resample.h"

namespace moetrace::stats {

using LaneArray = double[kLanes];

/// Eight columns of one statistic, and one thread's memory for them, kept from block to block.
struct Block {
  std::size_t first = 0;             // column of lane 0
  std::size_t used = 0;              // lanes that hold a column
  alignas(64) LaneArray estimate{};  // of the statistic
  alignas(64) LaneArray noise{};     // differences of the statistic up to this are rounding
  alignas(64) LaneArray total{};     // of the numerators
  alignas(64) LaneArray divisor{};   // of the denominators
  alignas(64) LaneArray error{};     // of the estimate; pivotal statistics only
  alignas(64) LaneArray sum{};       // and of their replicates, before they are divided by an error
  alignas(64) LaneArray squares{};
  AlignedBuffer<double> rows, denominator_rows, table, second_sums;
};

/// What a bootstrap is a bootstrap of: makes replicates, eight columns at a time.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  virtual std::size_t columns() const = 0;
  virtual void load(std::size_t first, Block& block) const = 0;
  /// values [sums_of(slice.count)] = unit() times the replicates of the statistic, [resample][lane].
  virtual void replicate(const ResamplePlan& plan, const Slice& slice, Block& block,
                         double* values) const = 0;
  /// The statistic without one case (or cluster), for each of them.
  virtual void leave_one_out(const Block& block, std::size_t lane, std::vector<double>& values) const = 0;
  /// A sum over a constant number of cases stays a sum, so that equal sums stay equal.
  virtual double unit() const { return 1.0; }
  /// Whether a replicate is a distance from the estimate in units of block.error.
  virtual bool pivotal() const { return false; }
};

/// Intervals for every column of a source.
BootstrapIntervals bootstrap_blocks(const BlockSource& source, const Resampler& resampler,
                                    const BootstrapOptions& options, const Interrupt& interrupt);

/// The sources; x (and y) must outlive them. A label for each row, or none.
std::unique_ptr<BlockSource> mean_source(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                         const Resampler& resampler);
std::unique_ptr<BlockSource> ratio_source(const MatrixView& x, const MatrixView& y, Labels labels,
                                          const BootstrapOptions& options);
/// (mean* - mean) / error*, without clusters.
std::unique_ptr<BlockSource> studentized_source(const MatrixView& x);

}  // namespace moetrace::stats
