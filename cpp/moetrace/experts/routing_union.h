#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moetrace::experts {

/// The experts that the clean or the noised run routes one row to.
///
/// 2k slots: first the k clean-routed experts in the router's order, then the k noised-routed ones, valid
/// only where the clean run doesn't have them. The valid ones together are the routing union.
struct RoutingUnion {
  std::vector<std::int64_t> expert;
  std::vector<bool> valid;
  std::vector<bool> noised_active;   ///< of a valid slot: whether the noised run routes to its expert
  std::vector<float> clean_weight;   ///< as applied; 0 where not routed
  std::vector<float> noised_weight;  ///< as applied; 0 where not routed
  /// Which contributions make a slot's patch vector, c(clean) - c(noised) (equation 6): the router's place in
  /// the clean and in the noised run, -1 where that run doesn't route to the expert and c is zero.
  std::vector<std::int64_t> clean_place, noised_place;

  std::size_t slots() const noexcept { return expert.size(); }
  std::size_t top_k() const noexcept { return expert.size() / 2; }
  /// Slot of a clean-routed expert, -1 where the clean run doesn't route to it.
  std::int64_t clean_slot(std::int64_t wanted) const noexcept;
};

/// The same of several rows, whose tokens a patch changes together: `slots` clean-routed experts of any of
/// them, in the order of rows and then of the router, and as many that none of them routes to but the noised
/// run. Weights are sums over the rows; a place is 0 where any row routes to the expert.
///
/// Throws std::invalid_argument where there are more than `slots` of either kind.
RoutingUnion together(std::span<const RoutingUnion* const> rows, std::size_t slots);

/// From what the two runs route a row to. Throws std::invalid_argument unless all have the same length.
RoutingUnion unite(std::span<const std::int64_t> clean, std::span<const float> clean_weight,
                   std::span<const std::int64_t> noised, std::span<const float> noised_weight);

}  // namespace moetrace::experts
