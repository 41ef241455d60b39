#pragma once

#include <cstdint>
#include <vector>

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
  /// Rows of a fork: the first patched token of its place and everything after it; none where it is absent.
  std::int64_t chain(std::int64_t place) const { return has(place) ? length - positions(place).front() : 0; }
  /// Rows of the clean and of each noised branch.
  std::int64_t branch() const noexcept { return length - subject_start; }
};

/// Throws std::invalid_argument unless 0 <= start < stop <= length and every place ascends in the prompt.
void check(const CaseShape& shape);

}  // namespace moetrace::tree
