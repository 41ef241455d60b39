#pragma once

#include <vector>

#include "moetrace/coalition/game.h"

namespace moetrace::coalition {

/// One entry a case: how many players, which, and the coalition's value; -1, 0 and NaN where there is none.
struct SmallestCoalition {
  std::vector<std::int64_t> sizes;
  std::vector<Mask> coalitions;
  std::vector<double> values;
};

/// The listed non-empty coalition of fewest players that gains at least `share` of what all players gain, a
/// gain being v(S) - v(none). Of equal size the highest value wins, then the lowest mask. There is none where
/// all players together gain nothing, or no coalition gains enough (possible for a share above 1 alone).
///
/// Throws std::invalid_argument for a share that isn't finite and positive, or when the grand coalition has
/// no value.
SmallestCoalition smallest_coalition(const ListedGame& game, double share);

}  // namespace moetrace::coalition
