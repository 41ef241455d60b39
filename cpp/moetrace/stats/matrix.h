#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <vector>

#include "moetrace/stats/simd.h"

namespace moetrace::stats {

/// Cases (or clusters) by columns, row by row.
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixView = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;

/// Cluster of each row, 0 ... clusters - 1; empty where every row stands for itself.
using Labels = std::span<const std::int32_t>;

/// Memory on a cache line's boundary, as the kernels need it. Grows, never shrinks; not initialised.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size) { reserve(size); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { release(); }

  T* reserve(std::size_t size) {
    if (size > size_) {
      release();
      data_ = static_cast<T*>(::operator new(size * sizeof(T), kAlignment));
      size_ = size;
    }
    return data_;
  }
  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void release() noexcept {
    if (data_ != nullptr) ::operator delete(data_, kAlignment);
    data_ = nullptr;
    size_ = 0;
  }
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

constexpr std::size_t ceil_div(std::size_t value, std::size_t by) { return (value + by - 1) / by; }

/// Rows rounded up to whole groups, as a block of lanes has them.
constexpr std::size_t padded_rows(std::size_t rows) { return ceil_div(rows, kGroupRows) * kGroupRows; }

inline MatrixView view_of(const Matrix& matrix) {
  return {matrix.data(), matrix.rows(), matrix.cols(), Eigen::OuterStride<>(matrix.cols())};
}

/// Sums of the rows of each cluster (clusters x columns), added in the order of the rows. Without labels a
/// copy of x. Throws std::invalid_argument for labels of another length or out of range.
Matrix cluster_sums(const MatrixView& x, Labels labels, std::size_t clusters);

/// How many rows each cluster has; all 1 without labels.
std::vector<double> cluster_sizes(std::size_t rows, Labels labels, std::size_t clusters);

/// Columns first ... first + kLanes - 1 of x into out [padded_rows][kLanes]; what is beyond x is zero.
void load_block(const MatrixView& x, std::size_t first, double* out);

/// To the nearest whole number, ties to even, for values below 2^51: adding and taking away 1.5 * 2^52 leaves
/// no room for a fraction.
inline double nearest_whole(double value) {
  constexpr double kNoFraction = 0x1.8p52;
  return (value + kNoFraction) - kNoFraction;
}

/// How far a sum of this many terms may be off, relative to the sum of their absolute values.
double rounding_of(std::size_t terms);

/// Sum and sum of absolute values of `rows` values, as of a lane.
void column_sum(const double* values, std::size_t rows, double& sum, double& absolute);

/// Sum and sum of absolute values of each lane, compensated, so that a sum is right to about an ulp.
void lane_sums(const double* block, std::size_t rows, double* sum, double* absolute);

/// x as its cases, or as the sums of its clusters.
class Rows {
 public:
  Rows(const MatrixView& x, Labels labels, std::size_t clusters, bool whole_clusters)
      : own_(whole_clusters ? cluster_sums(x, labels, clusters) : Matrix()),
        view_(whole_clusters ? view_of(own_) : x) {}
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  const MatrixView& view() const noexcept { return view_; }

 private:
  Matrix own_;
  MatrixView view_;
};

}  // namespace moetrace::stats
