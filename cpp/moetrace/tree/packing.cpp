#include "moetrace/tree/packing.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace moetrace::tree {

std::vector<std::vector<std::int64_t>> pack(const std::vector<std::int64_t>& rows, std::int64_t budget) {
  if (budget < 1)
    throw std::invalid_argument("the budget is " + std::to_string(budget) + " rows, not 1 or more");
  std::vector<std::int64_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto size_of = [&](std::int64_t item) { return rows[static_cast<std::size_t>(item)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return size_of(a) < size_of(b); });

  std::vector<std::vector<std::int64_t>> batches;
  for (const std::int64_t item : order) {
    if (size_of(item) < 1) throw std::invalid_argument("an item needs at least one row");
    // Sizes ascend, so the newcomer is the longest of its batch.
    const bool fits =
        !batches.empty() && static_cast<std::int64_t>(batches.back().size() + 1) * size_of(item) <= budget;
    if (fits) {
      batches.back().push_back(item);
    } else {
      batches.push_back({item});
    }
  }
  return batches;
}

}  // namespace moetrace::tree
