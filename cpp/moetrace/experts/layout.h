#pragma once

#include <cstdint>
#include <limits>

#include "moetrace/hooks/tensor.h"

namespace moetrace::experts {

enum class Activation : std::uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kReluSquared };

/// What stands between the two products of an expert: act(gate) * (up + shift), or act(up) without a gate.
struct Gate {
  bool gated = true;
  bool interleaved = false;  ///< gate and up column by column, not one half behind the other
  Activation activation = Activation::kSilu;
  double slope = 1.0;  ///< of silu: x * sigmoid(slope * x)
  double limit = std::numeric_limits<double>::infinity();  ///< of the gate from above, of up on either side
  bool limits_activated = false;                           ///< the gate's limit holds behind the activation
  double shift = 0.0;

  /// (n, inner) of the first product (n, 2 x inner), or of (n, inner) without a gate.
  Tensor operator()(const Tensor& both) const;
};

/// How a module stores its experts.
struct Layout {
  Gate gate;
  bool transposed = false;  ///< (experts, in, out) instead of (experts, out, in)
  bool biased = false;

  /// Weights of a module, in this order: up (with the gate), down, and the biases of each.
  std::size_t weights() const { return biased ? 4 : 2; }
};

}  // namespace moetrace::experts
