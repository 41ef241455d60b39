// The operator by which Python's hooks reach a site: torch.ops.moetrace.fire(site, step, given).

#include <torch/csrc/stable/library.h>

#include "moetrace/hooks/site.h"

namespace {

// By value: that is how TORCH_BOX passes arguments.
std::vector<moetrace::Tensor> fire(
    std::int64_t site, std::int64_t step,
    std::vector<moetrace::Tensor> given) {  // NOLINT(performance-unnecessary-value-param)
  using moetrace::hooks::Site;
  using moetrace::hooks::Step;
  return Site::of(site).fire(static_cast<Step>(step), given);
}

}  // namespace

STABLE_TORCH_LIBRARY(moetrace, library) {
  library.def("fire(int site, int step, Tensor[] given) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(moetrace, CompositeImplicitAutograd, library) {
  library.impl("fire", TORCH_BOX(&fire));
}
