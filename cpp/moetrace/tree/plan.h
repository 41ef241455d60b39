#pragma once

#include <cstdint>
#include <vector>

#include "moetrace/tree/case_shape.h"
#include "moetrace/tree/fork.h"

namespace moetrace::tree {

/// Branch of rows that only fill a case up to the batch's longest.
inline constexpr std::int64_t kPadding = -2;

/// One batch of cases laid out as rows of one forward pass.
///
/// Every case has the same number of rows, so that rows with a meaning (final tokens, forks) stand at
/// the same index in each:
///
///     padding | prefix | clean but its last | noised 0 but its last | noised 1 … | clean last |
///     noised 0 last | noised 1 last | … | fork 0 | fork 1 | …
///
/// Forks follow in the order of their layers, so the rows of those up to layer l and all others are a prefix.
/// Each has as many rows as the case with the longest chain from its place needs, and is padded on the left
/// in the others; a place that no case of the batch has gives no rows. Arrays are row-major over (case, row).
/// Padding rows hold token 0 at position 0 and see only themselves.
struct Plan {
  std::int64_t cases = 0;
  std::int64_t base_rows = 0;               ///< rows before the first fork
  std::int64_t rows = 0;                    ///< all rows
  std::vector<std::int64_t> rows_at_layer;  ///< rows of the forks up to layer l, and all others
  std::vector<std::int64_t> position;       ///< place in the prompt: position id and token index
  std::vector<std::int64_t> source;         ///< base row that a fork's row copies; its own index elsewhere
  std::vector<std::int64_t> clean_twin;     ///< clean row at the same position; its own index elsewhere
  std::vector<std::int64_t> noised_twin;    ///< of a fork's row: the noised row of its draw there
  std::vector<std::int64_t> branch;         ///< -2 padding, -1 prefix and clean, else the noised branch
  std::vector<std::int64_t> fork;           ///< index of the fork as given, -1 for base rows and padding

  std::int64_t clean_last() const noexcept { return base_rows - branches_ - 1; }
  std::int64_t noised_last(std::int64_t noised) const noexcept { return base_rows - branches_ + noised; }
  /// First row of fork `given` (index as given, not in the order of layers).
  std::int64_t fork_start(std::int64_t given) const {
    return fork_start_.at(static_cast<std::size_t>(given));
  }
  /// Its rows: none where no case has its place, and then its last row is another's.
  std::int64_t chain(std::int64_t given) const { return chains_.at(static_cast<std::size_t>(given)); }
  std::int64_t fork_last(std::int64_t given) const { return fork_start(given) + chain(given) - 1; }
  std::int64_t branches() const noexcept { return branches_; }

  std::int64_t branches_ = 0;
  std::vector<std::int64_t> fork_start_, chains_;
};

/// Lay out `cases` with `branches` noised runs and `forks` in a model of `layers` layers.
/// Throws std::invalid_argument for an empty batch, a bad shape, or a fork outside the model, draws or
/// places.
Plan make_plan(const std::vector<CaseShape>& cases, const std::vector<Fork>& forks, std::int64_t branches,
               std::int64_t layers);

}  // namespace moetrace::tree
