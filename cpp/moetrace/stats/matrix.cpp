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

Block cluster_sums(const Block& rows, Labels labels, std::size_t clusters) {
  if (labels.empty()) return rows;
  check_labels(rows.size(), labels, clusters);
  Block sums(clusters, Lanes::Zero());
  for (std::size_t row = 0; row < rows.size(); ++row)
    sums[static_cast<std::size_t>(labels[row])] += rows[row];
  return sums;
}

std::vector<double> cluster_sizes(std::size_t rows, Labels labels, std::size_t clusters) {
  if (labels.empty()) return std::vector<double>(rows, 1.0);
  check_labels(rows, labels, clusters);
  std::vector<double> sizes(clusters, 0.0);
  for (const std::int32_t label : labels) sizes[static_cast<std::size_t>(label)] += 1.0;
  return sizes;
}

ScaledBlock::ScaledBlock(const MatrixView& x, std::size_t first)
    : rows(static_cast<std::size_t>(x.rows()), Lanes::Zero()),
      used(std::min(kLanes, static_cast<std::size_t>(x.cols()) - first)) {
  Lanes largest = Lanes::Zero();
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const double* from = x.data() + static_cast<Eigen::Index>(row) * x.outerStride() + first;
    std::copy(from, from + used, rows[row].data());
    largest = largest.max(rows[row].abs());
  }
  for (std::size_t lane = 0; lane < used; ++lane) {
    std::frexp(largest[static_cast<Eigen::Index>(lane)], &exponents[lane]);
    for (Lanes& row : rows) {
      double& value = row[static_cast<Eigen::Index>(lane)];
      value = std::ldexp(value, -exponents[lane]);
    }
  }
}

double rounding_of(std::size_t terms) {
  return std::numeric_limits<double>::epsilon() * (8.0 + std::sqrt(static_cast<double>(terms)));
}

LaneSums::LaneSums(std::span<const Lanes> rows) {
  Lanes lost = Lanes::Zero();
  for (const Lanes& value : rows) {
    const Lanes total = sum + value;
    const Lanes carried = total - sum;
    lost += (sum - (total - carried)) + (value - carried);
    sum = total;
    absolute += value.abs();
  }
  sum += lost;
}

}  // namespace moetrace::stats
