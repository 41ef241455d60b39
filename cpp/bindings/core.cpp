#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "The compiled core of moetrace: token trees, the hooks that patch them, and what experts contribute. "
      "Tensors reach it as torch.ops.moetrace.*, everything else through this module.";
  m.attr("__version__") = MOETRACE_VERSION;
  init_tree(m);
  init_experts(m);
  init_pass(m);
  init_scope(m);
  init_forward(m);
  init_coalition(m);
  init_weights(m);
}
