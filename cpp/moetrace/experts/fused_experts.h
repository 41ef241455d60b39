#pragma once

#include <optional>
#include <vector>

#include "moetrace/hooks/rows.h"

namespace moetrace::experts {

/// What the router sent rows to: index int64 (n, k), weight (n, k).
struct Routed {
  Tensor hidden;  ///< (n, width)
  Tensor index;
  Tensor weight;
};

/// Weights of experts in one tensor each, with a silu gate and no biases, as most families store them.
struct FusedExperts {
  Tensor gate_up;  ///< (experts, 2 x inner, width), gate before up
  Tensor down;     ///< (experts, width, inner)

  std::int64_t experts() const { return down.size(0); }
};

/// c_e of every routed (row, expert) pair (equation 5): (n, k, width), in float32 or wider.
///
/// Under fixed routing, with the rest of the block linear in the experts' sum, the ablation difference of an
/// expert is its own weighted output. Throws std::invalid_argument for shapes and experts that don't exist.
Tensor contributions(const FusedExperts& experts, const Routed& routed);

/// Output of all rows, and the contributions of some in the same reading of the weights.
struct FusedOutput {
  Tensor output;                       ///< (n, width), dtype of the hidden states
  std::optional<Tensor> contribution;  ///< (wanted, k, width); none where no row is wanted
};
/// On the processor. `wanted`: rows whose contributions are asked for, each once.
FusedOutput fused_output(const FusedExperts& experts, const Routed& routed,
                         const std::vector<std::int64_t>& wanted);

}  // namespace moetrace::experts
