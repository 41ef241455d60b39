#pragma once

#include <cstdint>

namespace moetrace::tree {

/// A patched run: patched in layer `layer` at the tokens of `place`, and up to there the same as the noised
/// run of its draw, or as the clean one. Its rows are a chain from the first of these tokens to the final
/// one. Layout says where they join; before they do the fork costs nothing.
struct Fork {
  std::int64_t layer = 0;
  std::int64_t draw = 0;
  std::int64_t place = 0;
  bool from_clean = false;  ///< leaves from the clean run; its draw says whose noised values it may take
  /// Tokens of the place, from its first on, at which nothing can differ: the chain begins behind them.
  std::int64_t skipped = 0;
};

}  // namespace moetrace::tree
