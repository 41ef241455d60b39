#include <cmath>
#include <limits>

#include "moetrace/stats/block_source.h"

namespace moetrace::stats {

namespace {

/// A sum over the rows of a resample, divided by its cases.
class MeanSource : public BlockSource {
 public:
  MeanSource(const MatrixView& x, Labels labels, const BootstrapOptions& options, const Resampler& resampler)
      : rows_(x, labels, options.clusters, !labels.empty() && !options.two_stage),
        units_(x, labels, options.clusters, !labels.empty()),
        unit_sizes_(cluster_sizes(static_cast<std::size_t>(x.rows()), labels, options.clusters)),
        cases_(static_cast<double>(x.rows())),
        constant_(resampler.constant_size()) {}

  std::size_t columns() const override { return static_cast<std::size_t>(rows_.view().cols()); }
  double unit() const override { return constant_ ? cases_ : 1.0; }

  void load(std::size_t first, Block& block) const override {
    const auto rows = static_cast<std::size_t>(rows_.view().rows());
    block.first = first;
    block.used = std::min(kLanes, columns() - first);
    load_block(rows_.view(), first, block.rows.reserve(padded_rows(rows) * kLanes));
    LaneArray absolute;
    lane_sums(block.rows.data(), rows, block.total, absolute);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      block.estimate[lane] = block.total[lane] / cases_;
      block.noise[lane] = rounding_of(rows) * absolute[lane] / cases_;
    }
  }

  void replicate(const ResamplePlan& plan, const Slice& slice, Block& block, double* values) const override {
    plan.weighted_sums(slice, block.rows.data(), block.table, values);
    if (constant_) return;
    const auto sizes = plan.sizes(slice);
    for (std::size_t i = 0; i < slice.count; ++i) {
      const double share = 1.0 / sizes[i];
      for (std::size_t lane = 0; lane < kLanes; ++lane) values[i * kLanes + lane] *= share;
    }
  }

  void leave_one_out(const Block& block, std::size_t lane, std::vector<double>& values) const override {
    values.resize(unit_sizes_.size());
    const auto column = static_cast<Eigen::Index>(block.first + lane);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double left_out = units_.view()(static_cast<Eigen::Index>(i), column);
      values[i] = (block.total[lane] - left_out) / (cases_ - unit_sizes_[i]);
    }
  }

 private:
  Rows rows_;
  Rows units_;
  std::vector<double> unit_sizes_;
  double cases_;
  bool constant_;
};

}  // namespace

std::unique_ptr<BlockSource> mean_source(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                         const Resampler& resampler) {
  return std::make_unique<MeanSource>(x, labels, options, resampler);
}

}  // namespace moetrace::stats
