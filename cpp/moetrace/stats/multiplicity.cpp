#include "moetrace/stats/multiplicity.h"

#include <algorithm>
#include <numeric>

namespace moetrace::stats {

namespace {

std::vector<std::int64_t> ascending(std::span<const double> p) {
  std::vector<std::int64_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return p[static_cast<std::size_t>(a)] < p[static_cast<std::size_t>(b)];
  });
  return order;
}

}  // namespace

std::vector<double> adjust_holm(std::span<const double> p) {
  const auto order = ascending(p);
  std::vector<double> scaled(p.size());
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    const auto at = static_cast<std::size_t>(order[rank]);
    scaled[at] = std::min(1.0, static_cast<double>(p.size() - rank) * p[at]);
  }
  return monotone(scaled, order);
}

std::vector<double> adjust_benjamini_hochberg(std::span<const double> p) {
  const auto order = ascending(p);
  std::vector<double> adjusted(p.size());
  double smallest = 1.0;
  for (std::size_t rank = order.size(); rank-- > 0;) {
    const auto at = static_cast<std::size_t>(order[rank]);
    smallest = std::min(smallest, static_cast<double>(p.size()) / static_cast<double>(rank + 1) * p[at]);
    adjusted[at] = smallest;
  }
  return adjusted;
}

std::vector<double> monotone(std::span<const double> p, std::span<const std::int64_t> order) {
  std::vector<double> adjusted(p.begin(), p.end());
  double largest = 0.0;
  for (const std::int64_t column : order) {
    double& value = adjusted[static_cast<std::size_t>(column)];
    value = largest = std::max(largest, value);
  }
  return adjusted;
}

}  // namespace moetrace::stats
