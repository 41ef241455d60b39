#include <cmath>
#include <limits>

#include "moetrace/stats/block_source.h"

namespace moetrace::stats {

namespace {

/// The studentised mean: its replicates need the sums of squares too.
class StudentizedSource : public BlockSource {
 public:
  explicit StudentizedSource(const MatrixView& x) : x_(x), cases_(static_cast<double>(x.rows())) {}

  std::size_t columns() const override { return static_cast<std::size_t>(x_.cols()); }
  bool pivotal() const override { return true; }

  void load(std::size_t first, Block& block) const override {
    const auto rows = static_cast<std::size_t>(x_.rows());
    block.first = first;
    block.used = std::min(kLanes, columns() - first);
    double* centred = block.rows.reserve(padded_rows(rows) * kLanes);
    double* squared = block.denominator_rows.reserve(padded_rows(rows) * kLanes);
    load_block(x_, first, centred);
    LaneArray absolute;
    lane_sums(centred, rows, block.total, absolute);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      block.estimate[lane] = block.total[lane] / cases_;
      block.noise[lane] = rounding_of(rows) * absolute[lane] / cases_;
      block.sum[lane] = block.squares[lane] = 0.0;
    }
    // Padding becomes minus the mean, and is never drawn.
    for (std::size_t i = 0; i < padded_rows(rows) * kLanes; ++i) {
      centred[i] -= block.estimate[i % kLanes];
      squared[i] = centred[i] * centred[i];
    }
    LaneArray deviation;
    lane_sums(squared, rows, deviation, absolute);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      block.error[lane] = std::sqrt(deviation[lane] / (cases_ - 1.0) / cases_);
    }
  }

  void replicate(const ResamplePlan& plan, const Slice& slice, Block& block, double* values) const override {
    plan.weighted_sums(slice, block.rows.data(), block.table, values);
    double* squares = block.second_sums.reserve(sums_of(slice.count));
    plan.weighted_sums(slice, block.denominator_rows.data(), block.table, squares);
    for (std::size_t i = 0; i < slice.count * kLanes; ++i) {
      const double mean = values[i] / cases_;
      const double variance = (squares[i] / cases_ - mean * mean) / (cases_ - 1.0);
      block.sum[i % kLanes] += mean;
      block.squares[i % kLanes] += mean * mean;
      if (variance > 0.0) {
        values[i] = mean / std::sqrt(variance);
      } else {  // one case, drawn n times
        values[i] = mean == 0.0 ? 0.0 : std::copysign(std::numeric_limits<double>::infinity(), mean);
      }
    }
  }

  void leave_one_out(const Block&, std::size_t, std::vector<double>& values) const override {
    values.clear();
  }

 private:
  MatrixView x_;
  double cases_;
};

}  // namespace

std::unique_ptr<BlockSource> studentized_source(const MatrixView& x) {
  return std::make_unique<StudentizedSource>(x);
}

}  // namespace moetrace::stats
