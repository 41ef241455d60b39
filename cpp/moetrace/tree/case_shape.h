#pragma once

#include <cstdint>

namespace moetrace::tree {

/// What the tree has to know of a case: lengths and places in its prompt, in tokens.
struct CaseShape {
  std::int64_t length = 0;          ///< tokens of the prompt
  std::int64_t subject_start = 0;   ///< first noised token; everything before it is shared
  std::int64_t subject_stop = 0;    ///< one past the last noised token
  std::int64_t patch_position = 0;  ///< where forks are patched; length - 1 is the final token

  /// Rows of a fork: the patched token and everything after it.
  std::int64_t chain() const noexcept { return length - patch_position; }
  /// Rows of the clean and of each noised branch.
  std::int64_t branch() const noexcept { return length - subject_start; }
};

/// Throws std::invalid_argument unless 0 <= start < stop <= length and the patch lies in the prompt.
void check(const CaseShape& shape);

}  // namespace moetrace::tree
