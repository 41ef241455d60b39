#pragma once

#include "moetrace/hooks/aten.h"

namespace moetrace::experts {

/// Weights of the standard gated layout: expert e gives down[e] (silu(gate) * up), with gate and up the
/// halves of gate_up[e] h, times its routing weight.
struct GatedExperts {
  at::Tensor gate_up;  ///< (experts, 2 x inner, width)
  at::Tensor down;     ///< (experts, width, inner)
};

/// Contribution of every routed (row, expert) pair (equation 5 under fixed routing).
///
/// hidden (n, width), index int64 (n, k), weights (n, k) -> (n, k, width), in float32 unless hidden is
/// float64. Pairs are grouped by expert, so no intermediate is held k-fold. An index outside the experts
/// (a skipped or identity slot) throws std::invalid_argument: such a layout needs its own module.
at::Tensor gated_contributions(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
                               const at::Tensor& weights);

struct GatedOutput {
  at::Tensor output;        ///< (n, width), hidden's dtype: sum of each row's contributions
  at::Tensor contribution;  ///< (wanted, k, width), as gated_contributions gives it
};

/// Output of the experts for all rows and the contributions of some, each weight read once. wanted: int64
/// (m), rows of hidden, each once. Nothing k-fold is held for the other rows. Errors as gated_contributions.
GatedOutput gated_output(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
                         const at::Tensor& weights, const at::Tensor& wanted);

}  // namespace moetrace::experts
