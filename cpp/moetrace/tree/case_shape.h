#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/tree/fork.h"

namespace moetrace::tree {

/// Tokens that one patch changes together, as ascending positions in the prompt; none where a case has no
/// such token.
using Positions = std::vector<std::int64_t>;

/// What the tree has to know of a case: lengths and places in its prompt, in tokens.
struct CaseShape {
  std::int64_t length = 0;         ///< tokens of the prompt
  std::int64_t subject_start = 0;  ///< first noised token; everything before it is shared
  std::int64_t subject_stop = 0;   ///< one past the last noised token
  std::vector<Positions> places;   ///< where patches are made, by the number of the place

  /// Where a place is in this case. Throws std::out_of_range for a place that no case has.
  const Positions& positions(std::int64_t place) const { return places.at(static_cast<std::size_t>(place)); }
  bool has(std::int64_t place) const { return !positions(place).empty(); }
  /// The tokens of its place that a fork patches: all but those that it skips.
  std::span<const std::int64_t> patched(const Fork& fork) const {
    const std::span<const std::int64_t> all(positions(fork.place));
    return all.subspan(std::min(all.size(), static_cast<std::size_t>(fork.skipped)));
  }
  /// Rows of a fork: the first of these tokens and everything after it; none where it has none.
  std::int64_t chain(const Fork& fork) const {
    const auto tokens = patched(fork);
    return tokens.empty() ? 0 : length - tokens.front();
  }
  /// Rows of the clean and of each noised branch.
  std::int64_t branch() const noexcept { return length - subject_start; }
};

/// Throws std::invalid_argument unless 0 <= start < stop <= length and every place ascends in the prompt.
void check(const CaseShape& shape);

}  // namespace moetrace::tree
