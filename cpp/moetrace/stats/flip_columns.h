#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "moetrace/stats/matrix.h"
#include "moetrace/stats/simd.h"

namespace moetrace::stats {

/// Sums of fewer rows are few enough for doubles; those of more would be too coarse as whole numbers.
inline constexpr std::size_t kFewestNarrowRows = 24;
inline constexpr std::size_t kMostNarrowRows = 1024;

/// Columns by their observed statistic |sum|, the least extreme first, side by side in blocks of lanes.
///
/// With T = double, sums that differ by up to 1e-12 of the column's sum of absolute values count as equal.
/// With T = std::int32_t each column is rounded to whole multiples of a power of two of its own, such that
/// sums are exact and stay below 2^30; sums that differ by no more than what that rounding can have done to
/// them count as equal. Columns are compared with each other as floats of their common unit.
template <class T>
struct FlipColumns {
  static constexpr std::size_t kWidth = kLineBytes / sizeof(T);
  using Running = std::conditional_t<sizeof(T) == sizeof(double), double, float>;

  std::size_t rows;
  std::size_t blocks;
  std::vector<std::int64_t> order;            // of the column at each place
  AlignedBuffer<T> packed;                    // [block][padded row][lane]
  AlignedBuffer<T> thresholds;                // [block][lane], out of reach where there is no column
  AlignedBuffer<float> units;                 // of whole numbers
  AlignedBuffer<Running> running_thresholds;  // in the unit that columns share
  std::vector<Running> steps;                 // those of all columns, sorted

  explicit FlipColumns(const MatrixView& x);

  std::size_t places() const { return blocks * kWidth; }
  std::size_t block_size() const { return padded_rows(rows) * kWidth; }
  const T* block(std::size_t index) const { return packed.data() + index * block_size(); }

 private:
  T& at(std::size_t place, std::size_t row) {
    return packed.data()[place / kWidth * block_size() + row * kWidth + place % kWidth];
  }

  /// Packs the columns in their order and sets their thresholds and units.
  void pack(const MatrixView& x, const std::vector<double>& sums, const std::vector<double>& absolute);
};

template <>
void FlipColumns<double>::pack(const MatrixView& x, const std::vector<double>& sums,
                               const std::vector<double>& absolute);
template <>
void FlipColumns<std::int32_t>::pack(const MatrixView& x, const std::vector<double>& sums,
                                     const std::vector<double>& absolute);

}  // namespace moetrace::stats
