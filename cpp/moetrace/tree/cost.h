#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "moetrace/tree/case_shape.h"
#include "moetrace/tree/fork.h"
#include "moetrace/tree/layout.h"

namespace moetrace::tree {

/// Patched runs: a fork each for every draw, whatever draw it names.
using Runs = std::vector<Fork>;

/// Token rows of one case with the runs from `begin` to `end`.
std::int64_t tree_rows(const CaseShape& shape, const Runs& runs, std::int64_t begin, std::int64_t end,
                       std::int64_t branches);

/// Token rows of one case in the average layer, at least a quarter of all: what a batch is cut by.
///
/// Forks that join late cost little, and small batches would cost much in the layers below them; the quarter
/// bounds what the layers above may take.
std::int64_t tree_cost(const CaseShape& shape, const Runs& runs, std::int64_t branches, std::int64_t layers,
                       Join join);

/// Ranges [begin, end) of a case's runs, in order, that keep each tree within `budget` rows (0: no budget).
///
/// Each part runs the prompt again, so a part may have as many fork rows as the prompt has rows, however
/// small the budget is.
std::vector<std::pair<std::int64_t, std::int64_t>> cut(const CaseShape& shape, const Runs& runs,
                                                       std::int64_t branches, std::int64_t layers, Join join,
                                                       std::int64_t budget);

/// Rows of each case of a batch while each layer runs, and last all of them: what a pass over the batch
/// costs. `begin`, `end`: which runs. Throws as make_plan does.
std::vector<std::int64_t> layer_rows(const std::vector<CaseShape>& cases, const Runs& runs,
                                     std::int64_t begin, std::int64_t end, std::int64_t branches,
                                     std::int64_t layers, Join join);

}  // namespace moetrace::tree
