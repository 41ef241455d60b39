#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "moetrace/hooks/tensor.h"

/// Tensors of the tests, through the same stable ABI as the core's.
namespace moetrace::testing {

using Numbers = std::vector<float>;
using Shape = std::vector<std::int64_t>;

inline Tensor tensor(const Numbers& values, const Shape& shape) {
  return ops::from_vector(values, shape, ScalarType::Float);
}
inline Tensor integers(const std::vector<std::int64_t>& values, const Shape& shape) {
  return ops::from_vector(values, shape, ScalarType::Long);
}
inline Numbers numbers(const Tensor& value) { return ops::to_vector<float>(value, ScalarType::Float); }

/// Numbers that differ from each other and have no pattern that a wrong row could share.
inline Numbers varied(std::size_t count, double phase = 0.0) {
  Numbers found(count);
  for (std::size_t at = 0; at < count; ++at) {
    found[at] = static_cast<float>(std::sin(1.7 * static_cast<double>(at) + phase));
  }
  return found;
}

/// Row `row` of a row-major table.
inline Numbers line(const Numbers& table, std::int64_t row, std::int64_t width) {
  const auto first = table.begin() + row * width;
  return {first, first + width};
}

/// Largest absolute difference; infinite where the sizes differ or a number is NaN.
inline double difference(const Numbers& a, const Numbers& b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0.0;
  for (std::size_t at = 0; at < a.size(); ++at) {
    const double own = std::fabs(static_cast<double>(a[at]) - static_cast<double>(b[at]));
    if (!(own <= largest)) largest = std::isnan(own) ? INFINITY : own;
  }
  return largest;
}

}  // namespace moetrace::testing
