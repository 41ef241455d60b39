#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/experts/routing_union.h"

namespace moetrace::experts {

/// Which patch vectors a patched run adds, said before the routing of a case is known.
enum class Chosen {
  kClean,    ///< all clean-routed experts (equation 14)
  kUnion,    ///< all experts of either run (equation 15)
  kSlot,     ///< the expert in one slot of the routing union
  kSubset,   ///< a bitmask over the slots
  kExperts,  ///< the named experts, where either run routes to them
  kAnchor,   ///< one named expert, where it is clean-routed beside another
  kMatched,  ///< its gate-weight-matched control (equation 8)
};

struct ExpertPatch {
  Chosen chosen = Chosen::kClean;
  bool noised_slot = false;           ///< kSlot: counted among the noised-routed slots
  std::int64_t slot = 0;              ///< kSlot: from 0 to k - 1
  std::uint64_t subset = 0;           ///< kSubset: bit j for slot j
  std::vector<std::int64_t> experts;  ///< kExperts, kAnchor, kMatched: by index
  bool equal_norm = false;            ///< kAnchor, kMatched: both scaled to the smaller norm (equation 10)

  bool operator==(const ExpertPatch&) const = default;
};

/// The factor of each slot's patch vector (equation 6) in the sum that the patch adds; all zero where it
/// names nobody in this item. kClean sums them as equation 14 does, kUnion as equation 15. `norm`: of the
/// patch vectors, a number for each slot.
std::vector<float> slot_factors(const ExpertPatch& patch, const RoutingUnion& routing,
                                std::span<const float> norm);

}  // namespace moetrace::experts
