#pragma once

#include <vector>

#include "moetrace/coalition/game.h"

namespace moetrace::coalition {

/// One entry a case; a gain is v(S) - v(none).
struct Additivity {
  std::vector<double> singles;     ///< gains of the players one by one, summed
  std::vector<double> grand;       ///< gain of all players together
  std::vector<double> difference;  ///< grand - singles: above 0 they help each other, below 0 they overlap
};

/// How far a game is from additive. Throws std::invalid_argument when a single player, or all together, have
/// no value.
Additivity additivity(const ListedGame& game);

}  // namespace moetrace::coalition
