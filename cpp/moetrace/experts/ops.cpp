// Operators over tensors that Python and users' pipelines reach as torch.ops.moetrace.*.

#include <torch/csrc/stable/library.h>

#include "moetrace/experts/fused_experts.h"

namespace {

using moetrace::Tensor;
using moetrace::experts::FusedExperts;
using moetrace::experts::Routed;

Tensor contributions(Tensor gate_up, Tensor down, Tensor hidden, Tensor index, Tensor weight) {
  return moetrace::experts::contributions(FusedExperts{gate_up, down, {}, {}}, Routed{hidden, index, weight});
}

// By value: that is how TORCH_BOX passes arguments.
std::vector<Tensor> fused_output(
    Tensor gate_up, Tensor down, Tensor hidden, Tensor index, Tensor weight,
    std::vector<std::int64_t> wanted) {  // NOLINT(performance-unnecessary-value-param)
  auto found = moetrace::experts::fused_output({gate_up, down, {}, {}}, {hidden, index, weight}, wanted);
  std::vector<Tensor> result{found.output};
  if (found.contribution) result.push_back(*found.contribution);
  return result;
}

Tensor gate(Tensor both, bool gated, bool interleaved, std::int64_t activation, double slope, double limit,
            bool limits_activated, double shift) {
  const auto kind = static_cast<moetrace::experts::Activation>(activation);
  return moetrace::experts::Gate{gated, interleaved, kind, slope, limit, limits_activated, shift}(both);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(moetrace, library) {
  library.def(
      "contributions(Tensor gate_up, Tensor down, Tensor hidden, Tensor index, Tensor weight) -> Tensor");
  library.def(
      "fused_output(Tensor gate_up, Tensor down, Tensor hidden, Tensor index, Tensor weight, int[] wanted)"
      " -> Tensor[]");
  library.def(
      "gate(Tensor both, bool gated, bool interleaved, int activation, float slope, float limit,"
      " bool limits_activated, float shift) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(moetrace, CompositeImplicitAutograd, library) {
  library.impl("contributions", TORCH_BOX(&contributions));
  library.impl("fused_output", TORCH_BOX(&fused_output));
  library.impl("gate", TORCH_BOX(&gate));
}
