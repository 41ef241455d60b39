#include "moetrace/stats/matrix.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace moetrace::stats {

namespace {

void check_labels(std::size_t rows, Labels labels, std::size_t clusters) {
  if (labels.size() != rows) {
    throw std::invalid_argument("found " + std::to_string(labels.size()) + " cluster labels for " +
                                std::to_string(rows) + " rows; expected one a row");
  }
  for (const std::int32_t label : labels) {
    if (label < 0 || static_cast<std::size_t>(label) >= clusters) {
      throw std::invalid_argument("found cluster label " + std::to_string(label) + "; expected 0 to " +
                                  std::to_string(clusters) + " - 1");
    }
  }
}

}  // namespace

Matrix cluster_sums(const MatrixView& x, Labels labels, std::size_t clusters) {
  if (labels.empty()) return x;
  check_labels(static_cast<std::size_t>(x.rows()), labels, clusters);
  Matrix sums = Matrix::Zero(static_cast<Eigen::Index>(clusters), x.cols());
  for (Eigen::Index row = 0; row < x.rows(); ++row)
    sums.row(labels[static_cast<std::size_t>(row)]) += x.row(row);
  return sums;
}

std::vector<double> cluster_sizes(std::size_t rows, Labels labels, std::size_t clusters) {
  if (labels.empty()) return std::vector<double>(rows, 1.0);
  check_labels(rows, labels, clusters);
  std::vector<double> sizes(clusters, 0.0);
  for (const std::int32_t label : labels) sizes[static_cast<std::size_t>(label)] += 1.0;
  return sizes;
}

void load_block(const MatrixView& x, std::size_t first, double* out) {
  const auto rows = static_cast<std::size_t>(x.rows());
  const std::size_t width = std::min(kLanes, static_cast<std::size_t>(x.cols()) - first);
  std::fill(out, out + padded_rows(rows) * kLanes, 0.0);
  for (std::size_t row = 0; row < rows; ++row) {
    const double* from = x.data() + static_cast<std::ptrdiff_t>(row) * x.outerStride() + first;
    std::copy(from, from + width, out + row * kLanes);
  }
}

double rounding_of(std::size_t terms) {
  return std::numeric_limits<double>::epsilon() * (8.0 + std::sqrt(static_cast<double>(terms)));
}

void column_sum(const double* values, std::size_t rows, double& sum, double& absolute) {
  double lost = 0.0;
  sum = absolute = 0.0;
  for (std::size_t row = 0; row < rows; ++row) {
    const double total = sum + values[row];
    const double carried = total - sum;
    lost += (sum - (total - carried)) + (values[row] - carried);
    sum = total;
    absolute += std::fabs(values[row]);
  }
  sum += lost;
}

void lane_sums(const double* block, std::size_t rows, double* sum, double* absolute) {
  double lost[kLanes] = {};
  std::fill(sum, sum + kLanes, 0.0);
  std::fill(absolute, absolute + kLanes, 0.0);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double value = block[row * kLanes + lane];
      const double total = sum[lane] + value;
      const double carried = total - sum[lane];
      lost[lane] += (sum[lane] - (total - carried)) + (value - carried);
      sum[lane] = total;
      absolute[lane] += std::fabs(value);
    }
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) sum[lane] += lost[lane];
}

}  // namespace moetrace::stats
