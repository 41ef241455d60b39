#pragma once

#include <cstdint>

namespace moetrace::tree {

/// A patched run: patched in layer `layer`, and up to there the same as noised branch `branch`. Layout says
/// where its rows join; before they do it costs nothing.
struct Fork {
  std::int64_t layer = 0;
  std::int64_t branch = 0;
};

}  // namespace moetrace::tree
