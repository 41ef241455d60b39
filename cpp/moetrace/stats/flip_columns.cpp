#include "moetrace/stats/flip_columns.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace moetrace::stats {

namespace {

constexpr double kTie = 1e-12;  // of a column's sum of absolute values

}  // namespace

template <class T>
FlipColumns<T>::FlipColumns(const MatrixView& x)
    : rows(static_cast<std::size_t>(x.rows())),
      blocks(ceil_div(static_cast<std::size_t>(x.cols()), kWidth)),
      order(static_cast<std::size_t>(x.cols())),
      packed(blocks * block_size()),
      thresholds(places()),
      units(places()),
      running_thresholds(places()) {
  const std::size_t columns = order.size();
  std::vector<double> sums(ceil_div(columns, kLanes) * kLanes);
  std::vector<double> absolute(sums.size());
  AlignedBuffer<double> eight(padded_rows(rows) * kLanes);
  for (std::size_t first = 0; first < columns; first += kLanes) {
    load_block(x, first, eight.data());
    lane_sums(eight.data(), rows, sums.data() + first, absolute.data() + first);
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return std::fabs(sums[static_cast<std::size_t>(a)]) < std::fabs(sums[static_cast<std::size_t>(b)]);
  });
  std::fill_n(packed.data(), blocks * block_size(), T{0});
  std::fill_n(thresholds.data(), places(), std::numeric_limits<T>::max());
  std::fill_n(units.data(), places(), 1.0F);
  std::fill_n(running_thresholds.data(), places(), std::numeric_limits<Running>::infinity());
  pack(x, sums, absolute);
  steps.assign(running_thresholds.data(), running_thresholds.data() + columns);
  std::sort(steps.begin(), steps.end());
}

template <>
void FlipColumns<double>::pack(const MatrixView& x, const std::vector<double>& sums,
                               const std::vector<double>& absolute) {
  for (std::size_t place = 0; place < order.size(); ++place) {
    const auto column = static_cast<std::size_t>(order[place]);
    thresholds.data()[place] = running_thresholds.data()[place] =
        std::fabs(sums[column]) - kTie * absolute[column];
  }
  for (std::size_t row = 0; row < rows; ++row) {
    const double* from = x.data() + static_cast<std::ptrdiff_t>(row) * x.outerStride();
    for (std::size_t place = 0; place < order.size(); ++place) at(place, row) = from[order[place]];
  }
}

template <>
void FlipColumns<std::int32_t>::pack(const MatrixView& x, const std::vector<double>&,
                                     const std::vector<double>& absolute) {
  std::vector<double> scales(order.size());
  std::vector<double> rounding(order.size());
  std::vector<std::int32_t> totals(order.size());
  for (std::size_t place = 0; place < order.size(); ++place) {
    // Rounding adds at most half a unit a row, which still leaves every sum below 2^30.
    int exponent = 0;
    const double size = absolute[static_cast<std::size_t>(order[place])];
    std::frexp(size, &exponent);
    scales[place] = size > 0.0 ? std::ldexp(1.0, 29 - exponent) : 1.0;
  }
  for (std::size_t row = 0; row < rows; ++row) {
    const double* from = x.data() + static_cast<std::ptrdiff_t>(row) * x.outerStride();
    for (std::size_t place = 0; place < order.size(); ++place) {
      const double scaled = from[order[place]] * scales[place];
      const double whole = nearest_whole(scaled);
      rounding[place] += std::fabs(scaled - whole);
      totals[place] += at(place, row) = static_cast<std::int32_t>(whole);
    }
  }
  for (std::size_t place = 0; place < order.size(); ++place) {
    const auto tie = static_cast<std::int32_t>(std::ceil(2.0 * rounding[place]));
    const auto unit = static_cast<float>(1.0 / scales[place]);
    const std::int32_t threshold = std::abs(totals[place]) - tie;
    thresholds.data()[place] = threshold;
    units.data()[place] = unit;
    // A little lower, so that two columns' floats are equal where their sums are.
    running_thresholds.data()[place] = static_cast<float>(threshold) * unit * (1.0F - 0x1p-22F);
  }
}

template struct FlipColumns<double>;
template struct FlipColumns<std::int32_t>;

}  // namespace moetrace::stats
