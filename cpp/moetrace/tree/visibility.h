#pragma once

#include <cstdint>
#include <vector>

#include "moetrace/tree/plan.h"

namespace moetrace::tree {

/// Who sees whom: cell (case, row, other) is 1 where `other` is `row` itself or one of its ancestors.
///
/// Ancestors of a clean row are the prefix and the clean rows before it; of a noised row the prefix and
/// the rows of its branch before it; of a fork's row the rows before its chain of the run that it leaves
/// from, and the fork's own rows before it. A padding row sees itself alone: a row that sees nothing is NaN
/// in some attention kernels. Row-major over (case, row, other).
std::vector<std::uint8_t> visibility(const Plan& plan);

}  // namespace moetrace::tree
