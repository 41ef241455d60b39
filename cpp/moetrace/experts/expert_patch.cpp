#include "moetrace/experts/expert_patch.h"

#include <algorithm>

#include "moetrace/experts/controls.h"

namespace moetrace::experts {

namespace {

/// Anchor and control exist together or not at all, so that both patches are over the same cases.
void fill_pair(const ExpertPatch& patch, const RoutingUnion& routing, std::span<const float> norm,
               std::vector<float>& factors) {
  const std::int64_t anchor = routing.clean_slot(patch.experts.at(0));
  if (anchor < 0) return;
  const std::span<const std::int64_t> experts(routing.expert.data(), routing.top_k());
  const std::span<const float> weights(routing.clean_weight.data(), routing.top_k());
  const std::int64_t control = matched_control(experts, weights, anchor);
  if (control < 0) return;
  const bool selected = patch.chosen == Chosen::kAnchor;
  const auto own = static_cast<std::size_t>(selected ? anchor : control);
  const auto other = static_cast<std::size_t>(selected ? control : anchor);
  factors[own] = patch.equal_norm ? equal_norm_factor(norm[own], norm[other]) : 1.0F;
}

bool contains(const ExpertPatch& patch, const RoutingUnion& routing, std::size_t slot) {
  const std::size_t top_k = routing.top_k();
  switch (patch.chosen) {
    case Chosen::kClean:
      return slot < top_k;
    case Chosen::kUnion:
      return true;
    case Chosen::kSlot:
      return static_cast<std::size_t>(patch.slot) < top_k &&
             slot == static_cast<std::size_t>(patch.slot) + (patch.noised_slot ? top_k : 0);
    case Chosen::kSubset:
      return slot < 64 && ((patch.subset >> slot) & 1U) != 0;
    case Chosen::kExperts:
      return std::find(patch.experts.begin(), patch.experts.end(), routing.expert[slot]) !=
             patch.experts.end();
    default:
      return false;
  }
}

}  // namespace

std::vector<float> slot_factors(const ExpertPatch& patch, const RoutingUnion& routing,
                                std::span<const float> norm) {
  std::vector<float> factors(routing.slots(), 0.0F);
  if (patch.chosen == Chosen::kAnchor || patch.chosen == Chosen::kMatched) {
    fill_pair(patch, routing, norm, factors);
    return factors;
  }
  for (std::size_t slot = 0; slot < factors.size(); ++slot) {
    if (routing.valid[slot] && contains(patch, routing, slot)) factors[slot] = 1.0F;
  }
  return factors;
}

}  // namespace moetrace::experts
