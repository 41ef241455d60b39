#pragma once

#include "moetrace/hooks/aten.h"

namespace moetrace::experts {

/// What the router sent rows to, and what each expert gave: index (n, k), weight (n, k), contribution (n, k,
/// width).
struct Routed {
  at::Tensor index, weight, contribution;
};

/// The experts that the clean or the noised run routes to, and their patch vectors (equation 6).
///
/// 2k places for each of n items: first the k clean-routed experts in the router's order, then the k
/// noised-routed ones, valid only where the clean run doesn't have them. Together they are the routing union.
struct Players {
  at::Tensor expert;         ///< int64 (n, 2k)
  at::Tensor valid;          ///< bool (n, 2k)
  at::Tensor noised_active;  ///< bool (n, 2k)
  at::Tensor clean_weight;   ///< float32 (n, 2k), 0 where not routed
  at::Tensor noised_weight;  ///< float32 (n, 2k), 0 where not routed
  at::Tensor delta;          ///< (n, 2k, width), 0 where not valid
  at::Tensor norm;           ///< float32 (n, 2k), of delta
};

/// delta_e = c_e(clean) - c_e(noised), with a contribution of 0 in a run that doesn't route to e.
Players match(const Routed& clean, const Routed& noised);

}  // namespace moetrace::experts
