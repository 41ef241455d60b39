#include "modules.h"

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "The compiled core of moetrace: token trees, the hooks that patch them, and what experts contribute.";
  m.attr("TORCH_VERSION") = MOETRACE_TORCH_VERSION;
  init_tree(m);
  init_hooks(m);
  init_experts(m);
  init_coalition(m);
}
