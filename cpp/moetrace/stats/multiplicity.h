#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moetrace::stats {

/// Holm's step-down adjustment (1979): family-wise error under any dependence.
std::vector<double> adjust_holm(std::span<const double> p);

/// Benjamini and Hochberg's step-up adjustment (1995): false discovery rate.
std::vector<double> adjust_benjamini_hochberg(std::span<const double> p);

/// Step-down values made monotone: none smaller than that of a more extreme hypothesis before it in order.
std::vector<double> monotone(std::span<const double> p, std::span<const std::int64_t> order);

}  // namespace moetrace::stats
