#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moetrace/experts/routing_union.h"
#include "moetrace/hooks/tensor.h"

namespace moetrace::experts {

/// What experts of one layer contribute instead in one case, at the experts' output.
struct Replacements {
  std::vector<std::int64_t> experts;
  std::vector<float> vectors;  ///< (experts, width), row-major
};

/// How the experts of a layer are switched off: a slot's patch vector is what comes instead, less the
/// expert's own contribution c_e (equation 5) where that is taken away.
struct KnockOut {
  bool taken = true;                  ///< else what comes instead is all that changes: its router chose anew
  bool named = false;                 ///< every routed expert must have a replacement; else none has one
  std::vector<Replacements> instead;  ///< by item, where `named`

  /// Patch vectors of every slot: (items, 2k, width). `contribution`: (watched, k, width), of which `clean`
  /// are the items' clean rows. Throws hooks::Failure where a routed expert has no replacement, as where
  /// rounding routes a row to another expert than in the pass that found them.
  Tensor vectors(const Tensor& contribution, const std::vector<RoutingUnion>& routing,
                 const std::vector<std::int64_t>& clean, const std::string& name) const;
};

}  // namespace moetrace::experts
