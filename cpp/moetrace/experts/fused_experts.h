#pragma once

#include <optional>
#include <vector>

#include "moetrace/experts/layout.h"
#include "moetrace/hooks/rows.h"

namespace moetrace::experts {

/// What the router sent rows to: index int64 (n, k), weight (n, k).
struct Routed {
  Tensor hidden;  ///< (n, width)
  Tensor index;
  Tensor weight;
};

/// Weights of all experts of a layer in one tensor each, as most families store them.
struct FusedExperts {
  Tensor up;    ///< (experts, 2 x inner, width) with a gate, (experts, inner, width) without
  Tensor down;  ///< (experts, width, inner)
  std::optional<Tensor> up_bias, down_bias;
  Layout layout{};

  /// `weights`: as many as the layout has, in its order.
  static FusedExperts of(const Layout& layout, const Tensor* weights);

  std::int64_t experts() const { return down.size(0); }
  std::int64_t width() const { return down.size(layout.transposed ? 2 : 1); }
  std::int64_t inner() const { return down.size(layout.transposed ? 1 : 2); }
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
/// On the processor, in double, single or half precision. Products and what stands between them are in the
/// dtype of the hidden states, as the module computes them; weighted outputs are added in float32 and rounded
/// once where that is half precision, and contributions are in float32. `wanted`: rows whose contributions are
/// asked for, each once.
FusedOutput fused_output(const FusedExperts& experts, const Routed& routed,
                         const std::vector<std::int64_t>& wanted);

}  // namespace moetrace::experts
