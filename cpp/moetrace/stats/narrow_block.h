#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moetrace/stats/matrix.h"

namespace moetrace::stats {

/// Sixteen columns as whole multiples of a unit of their own, less their mean.
struct NarrowBlock {
  static constexpr std::size_t kWidth = kNarrowLanes;

  std::size_t used = 0;               // lanes that hold a column
  AlignedBuffer<std::int32_t> whole;  // [padded row][lane]
  std::vector<double> exact;          // [lane][row], as given
  double total[kWidth] = {};
  double noise[kWidth] = {};     // differences of a total up to this are rounding
  double unit[kWidth] = {};      // of `whole`
  double rounding[kWidth] = {};  // the most that a row is off, in units
  bool varies[kWidth] = {};

  const double* column(std::size_t lane) const { return exact.data() + lane * (exact.size() / kWidth); }

  /// Columns first ... of x. `shares` is how much of the mean belongs to a row (its share of the cases), and
  /// `most_draws` bounds the number of rows in a resample: sums of that many stay below 2^30.
  void load(const MatrixView& x, std::size_t first, const std::vector<double>& shares,
            std::size_t most_draws);

 private:
  void load_lane(std::size_t lane, const std::vector<double>& shares, std::size_t most_draws);
};

}  // namespace moetrace::stats
