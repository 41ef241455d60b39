#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moetrace::experts {

/// Which patch vectors a patched run adds, said before the routing is known.
enum class Kind {
  kClean,    ///< every clean-routed expert (equation 14)
  kUnion,    ///< every clean- or noised-routed expert (equation 15)
  kPlace,    ///< the expert at one of the 2k places
  kSubset,   ///< a bitmask over the 2k places
  kExperts,  ///< the named experts, where either run routes to them
  kAnchor,   ///< the named expert, where it is clean-routed beside another
  kMatched,  ///< the clean-routed expert whose weight is closest to the named one's (equation 8)
};

struct Recipe {
  Kind kind = Kind::kClean;
  std::int64_t place = 0;                  ///< of kPlace
  std::uint64_t subset = 0;                ///< of kSubset: bit j is place j
  std::vector<std::int64_t> experts = {};  ///< of kExperts; one expert of kAnchor and kMatched
  bool equal_norm = false;  ///< of kAnchor and kMatched: scaled to the smaller norm (equation 10)
};

/// One item's players: spans of 2k values, see Players.
struct PlayersView {
  std::span<const std::int64_t> expert;
  std::span<const bool> valid;
  std::span<const float> clean_weight;
  std::span<const float> norm;

  std::size_t top_k() const noexcept { return expert.size() / 2; }
};

/// Factor of each of the 2k patch vectors; all zero where the recipe names nobody in this item.
std::vector<float> coefficients(const Recipe& recipe, const PlayersView& players);

/// Clean place of the gate-weight-matched control of `anchor` (equation 8), -1 where there is none.
/// Of equally close experts the one with the lowest index.
std::int64_t matched_place(std::int64_t anchor, const PlayersView& players);

}  // namespace moetrace::experts
