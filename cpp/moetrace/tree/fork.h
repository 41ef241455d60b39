#pragma once

#include <cstdint>

namespace moetrace::tree {

/// A patched run: it leaves noised branch `branch` at the entry of layer `layer`. Below it costs nothing.
struct Fork {
  std::int64_t layer = 0;
  std::int64_t branch = 0;
};

}  // namespace moetrace::tree
