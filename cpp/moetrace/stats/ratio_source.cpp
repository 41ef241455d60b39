#include <cmath>
#include <stdexcept>
#include <string>

#include "moetrace/stats/block_source.h"

namespace moetrace::stats {

namespace {

/// A sum of one column over the rows of a resample, divided by the sum of another.
class RatioSource : public BlockSource {
 public:
  RatioSource(const MatrixView& x, const MatrixView& y, Labels labels, const BootstrapOptions& options)
      : x_(x, labels, options.clusters, !labels.empty() && !options.two_stage),
        y_(y, labels, options.clusters, !labels.empty() && !options.two_stage),
        unit_x_(x, labels, options.clusters, !labels.empty()),
        unit_y_(y, labels, options.clusters, !labels.empty()) {}

  std::size_t columns() const override { return static_cast<std::size_t>(x_.view().cols()); }

  void load(std::size_t first, Block& block) const override {
    const auto rows = static_cast<std::size_t>(x_.view().rows());
    block.first = first;
    block.used = std::min(kLanes, columns() - first);
    load_block(x_.view(), first, block.rows.reserve(padded_rows(rows) * kLanes));
    load_block(y_.view(), first, block.denominator_rows.reserve(padded_rows(rows) * kLanes));
    LaneArray absolute;
    LaneArray divisor_absolute;
    lane_sums(block.rows.data(), rows, block.total, absolute);
    lane_sums(block.denominator_rows.data(), rows, block.divisor, divisor_absolute);
    for (std::size_t lane = 0; lane < block.used; ++lane) {
      if (std::fabs(block.divisor[lane]) <= rounding_of(rows) * divisor_absolute[lane]) {
        throw std::domain_error("the denominators of column " + std::to_string(first + lane) +
                                " have a mean of zero; expected one that is not");
      }
      block.estimate[lane] = block.total[lane] / block.divisor[lane];
      block.noise[lane] = rounding_of(rows) *
                          (absolute[lane] + std::fabs(block.estimate[lane]) * divisor_absolute[lane]) /
                          std::fabs(block.divisor[lane]);
    }
  }

  void replicate(const ResamplePlan& plan, const Slice& slice, Block& block, double* values) const override {
    plan.weighted_sums(slice, block.rows.data(), block.table, values);
    double* divisors = block.second_sums.reserve(sums_of(slice.count));
    plan.weighted_sums(slice, block.denominator_rows.data(), block.table, divisors);
    for (std::size_t i = 0; i < slice.count; ++i) {
      for (std::size_t lane = 0; lane < block.used; ++lane) {
        if (divisors[i * kLanes + lane] == 0.0) {
          throw std::domain_error("the denominators of column " + std::to_string(block.first + lane) +
                                  " have a mean of zero in a resample; expected denominators that can't "
                                  "all vanish together");
        }
        values[i * kLanes + lane] /= divisors[i * kLanes + lane];
      }
    }
  }

  void leave_one_out(const Block& block, std::size_t lane, std::vector<double>& values) const override {
    values.resize(static_cast<std::size_t>(unit_x_.view().rows()));
    const auto column = static_cast<Eigen::Index>(block.first + lane);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto row = static_cast<Eigen::Index>(i);
      values[i] = (block.total[lane] - unit_x_.view()(row, column)) /
                  (block.divisor[lane] - unit_y_.view()(row, column));
    }
  }

 private:
  Rows x_;
  Rows y_;
  Rows unit_x_;
  Rows unit_y_;
};

}  // namespace

std::unique_ptr<BlockSource> ratio_source(const MatrixView& x, const MatrixView& y, Labels labels,
                                          const BootstrapOptions& options) {
  return std::make_unique<RatioSource>(x, y, labels, options);
}

}  // namespace moetrace::stats
