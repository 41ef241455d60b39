#pragma once

#include <cstdint>
#include <vector>

#include "moetrace/tree/plan.h"

namespace moetrace::tree {

/// Every run of a batch as a sequence of its own, for token mixers that read their tokens in order.
///
/// Sequences: of each case the clean run and the noised ones, then each fork that is there. The token of a
/// sequence at place p is the row that stands at position p of the prompt, so a fork's tokens before its cut
/// are those of the run that it goes on from.
struct Paths {
  std::int64_t rows = 0;             ///< rows of each case that are there
  std::int64_t bases = 0;            ///< sequences before the first fork
  std::int64_t longest = 0;          ///< tokens of the longest sequence
  std::vector<std::int64_t> length;  ///< tokens of each sequence
  std::vector<std::int64_t> origin;  ///< sequence that a fork goes on from; its own number for other runs
  std::vector<std::int64_t> cut;     ///< position of a fork's first row of its own; 0 for other runs
  /// (sequences, longest): row of each token, as case * rows + row; behind the end the last one again.
  std::vector<std::int64_t> row;
  /// (cases, rows): the token that a row is, as sequence * longest + position; 0 for padding.
  std::vector<std::int64_t> place;

  std::int64_t sequences() const noexcept { return static_cast<std::int64_t>(length.size()); }
};

/// The sequences of a plan while its first `rows` rows are there. A fork goes on from the run of the row that
/// its first row copies. Throws std::invalid_argument unless base rows <= rows <= all rows.
Paths make_paths(const Plan& plan, std::int64_t rows);

}  // namespace moetrace::tree
