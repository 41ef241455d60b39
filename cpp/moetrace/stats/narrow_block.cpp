#include "moetrace/stats/narrow_block.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moetrace::stats {

void NarrowBlock::load(const MatrixView& x, std::size_t first, const std::vector<double>& shares,
                       std::size_t most_draws) {
  const auto rows = static_cast<std::size_t>(x.rows());
  used = std::min(kWidth, static_cast<std::size_t>(x.cols()) - first);
  exact.resize(rows * kWidth);
  for (std::size_t row = 0; row < rows; ++row) {
    const double* from = x.data() + static_cast<std::ptrdiff_t>(row) * x.outerStride() + first;
    for (std::size_t lane = 0; lane < used; ++lane) exact[lane * rows + row] = from[lane];
  }
  whole.reserve(padded_rows(rows) * kWidth);
  std::fill_n(whole.data(), padded_rows(rows) * kWidth, 0);
  for (std::size_t lane = 0; lane < used; ++lane) load_lane(lane, shares, most_draws);
}

void NarrowBlock::load_lane(std::size_t lane, const std::vector<double>& shares, std::size_t most_draws) {
  const std::size_t rows = shares.size();
  const double* values = column(lane);
  double absolute = 0.0;
  column_sum(values, rows, total[lane], absolute);
  noise[lane] = rounding_of(rows) * absolute;
  double largest = 0.0;
  for (std::size_t row = 0; row < rows; ++row) {
    largest = std::max(largest, std::fabs(values[row] - total[lane] * shares[row]));
  }
  varies[lane] = largest > noise[lane] / static_cast<double>(rows);
  int exponent = 0;
  std::frexp(largest * static_cast<double>(most_draws), &exponent);
  const double scale = varies[lane] ? std::ldexp(1.0, 29 - exponent) : 0.0;
  unit[lane] = varies[lane] ? 1.0 / scale : 1.0;
  double most = 0.0;
  for (std::size_t row = 0; row < rows; ++row) {
    const double scaled = (values[row] - total[lane] * shares[row]) * scale;
    const double nearest = nearest_whole(scaled);
    most = std::max(most, std::fabs(scaled - nearest));
    whole.data()[row * kWidth + lane] = static_cast<std::int32_t>(nearest);
  }
  rounding[lane] = most;
}

}  // namespace moetrace::stats
