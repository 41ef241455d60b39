#pragma once

#include <Eigen/Core>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moetrace::stats {

/// Cases (or clusters) by columns, row by row.
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixView = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;

/// Cluster of each row, 0 ... clusters - 1; empty where every row stands for itself.
using Labels = std::span<const std::int32_t>;

/// Columns are worked on eight at a time, side by side in memory, and missing ones are zero. Nothing is ever
/// added across lanes, so a column's result depends neither on its lane nor on its neighbours.
inline constexpr std::size_t kLanes = 8;
using Lanes = Eigen::Array<double, kLanes, 1>;
using Block = std::vector<Lanes>;  // a row each

constexpr std::size_t ceil_div(std::size_t value, std::size_t by) { return (value + by - 1) / by; }

inline MatrixView view_of(const Matrix& matrix) {
  return {matrix.data(), matrix.rows(), matrix.cols(), Eigen::OuterStride<>(matrix.cols())};
}

/// Sums of the rows of each cluster, added in the order of the rows; without labels a copy. Throws
/// std::invalid_argument for labels of another length or out of range.
Matrix cluster_sums(const MatrixView& x, Labels labels, std::size_t clusters);
Block cluster_sums(const Block& rows, Labels labels, std::size_t clusters);

/// How many rows each cluster has; all 1 without labels.
std::vector<double> cluster_sizes(std::size_t rows, Labels labels, std::size_t clusters);

/// Columns first ... first + 7, each in units of the power of two that brings its largest value into [0.5,
/// 1): neither squares nor cubes can then leave the range of doubles, and the results scale exactly.
struct ScaledBlock {
  ScaledBlock(const MatrixView& x, std::size_t first);

  Block rows;
  std::array<int, kLanes> exponents{};  // the unit is 2^exponent
  std::size_t used;                     // lanes that hold a column
};

/// How far a sum of this many terms may be off, relative to the sum of their absolute values.
double rounding_of(std::size_t terms);

/// Sum and sum of absolute values of each lane, compensated, so that the sum is right to about an ulp.
struct LaneSums {
  explicit LaneSums(std::span<const Lanes> rows);
  Lanes sum = Lanes::Zero();
  Lanes absolute = Lanes::Zero();
};

}  // namespace moetrace::stats
