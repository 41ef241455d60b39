#pragma once

#include <cmath>
#include <vector>

#include "../tensors.h"
#include "moetrace/experts/fused_experts.h"

namespace moetrace::testing {

using Line = std::vector<double>;

/// Experts with a silu gate, as plain loops over numbers: the oracle of the fused ones.
struct PlainExperts {
  std::int64_t count = 5, width = 4, inner = 3;
  Numbers gate_up = varied(5 * 6 * 4, 0.1), down = varied(5 * 4 * 3, 0.7);

  /// Equation 5: what the output lacks without the expert, all else held as it was.
  Line contribution(const Line& hidden, std::int64_t expert, double weight) const {
    Line value(static_cast<std::size_t>(inner)), found(static_cast<std::size_t>(width));
    for (std::int64_t i = 0; i < inner; ++i) {
      double gate = 0, up = 0;
      for (std::int64_t j = 0; j < width; ++j) {
        gate += at(gate_up, (expert * 2 * inner + i) * width + j) * hidden[static_cast<std::size_t>(j)];
        up += at(gate_up, (expert * 2 * inner + inner + i) * width + j) * hidden[static_cast<std::size_t>(j)];
      }
      value[static_cast<std::size_t>(i)] = gate / (1.0 + std::exp(-gate)) * up;
    }
    for (std::int64_t j = 0; j < width; ++j) {
      for (std::int64_t i = 0; i < inner; ++i) {
        found[static_cast<std::size_t>(j)] +=
            weight * at(down, (expert * width + j) * inner + i) * value[static_cast<std::size_t>(i)];
      }
    }
    return found;
  }

  /// The module itself: (n, width) from hidden (n, width), index and weight (n, k).
  Tensor module(const Tensor& hidden, const Tensor& index, const Tensor& weight) const {
    const auto experts = ops::to_vector<std::int64_t>(index, ScalarType::Long);
    const Numbers weights = numbers(weight), rows = numbers(hidden);
    const std::int64_t top_k = index.size(1);
    Numbers found(rows.size());
    for (std::size_t pair = 0; pair < experts.size(); ++pair) {
      const auto row = static_cast<std::int64_t>(pair) / top_k;
      const Line own = contribution(row_of(rows, row), experts[pair], weights[pair]);
      for (std::size_t i = 0; i < own.size(); ++i) {
        found[static_cast<std::size_t>(row * width) + i] += static_cast<float>(own[i]);
      }
    }
    return tensor(found, {hidden.size(0), width});
  }

  Line row_of(const Numbers& rows, std::int64_t row) const {
    return {rows.begin() + row * width, rows.begin() + (row + 1) * width};
  }
  Tensor gate_up_tensor() const { return tensor(gate_up, {count, 2 * inner, width}); }
  Tensor down_tensor() const { return tensor(down, {count, width, inner}); }
  experts::FusedExperts fused() const {
    return {gate_up_tensor(), down_tensor(), std::nullopt, std::nullopt};
  }

 private:
  static double at(const Numbers& table, std::int64_t place) {
    return static_cast<double>(table[static_cast<std::size_t>(place)]);
  }
};

}  // namespace moetrace::testing
