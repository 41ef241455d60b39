#pragma once

#include <cstdint>
#include <vector>

namespace moetrace::tree {

/// Cut items into batches so that (items of the batch) x (rows of its longest) stays within `budget`.
///
/// Items of like size go together, longest last, ties in the order given; an item above the budget gets a
/// batch of its own. Depends on nothing but `rows` and `budget`. Throws std::invalid_argument for a budget
/// or a size below 1.
std::vector<std::vector<std::int64_t>> pack(const std::vector<std::int64_t>& rows, std::int64_t budget);

}  // namespace moetrace::tree
