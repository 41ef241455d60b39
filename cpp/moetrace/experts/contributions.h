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

}  // namespace moetrace::experts
