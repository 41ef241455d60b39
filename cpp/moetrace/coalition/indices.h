#pragma once

#include <vector>

#include "moetrace/coalition/game.h"

namespace moetrace::coalition {

/// How the marginal contributions of a player, or of a pair, to the coalitions of the others are averaged.
enum class Index {
  shapley,  ///< first over coalitions of a size, then over sizes: the coalition of those that came before
  banzhaf,  ///< over all coalitions alike: every other player takes part with probability 1/2
};

/// The value of each player: cases x k, row after row. Shapley values sum to v(all) - v(none).
///
/// O(2^k k) a case.
std::vector<double> player_values(const CompleteGame& game, Index index);

/// The interaction index of each pair (Grabisch & Roubens 1999): cases x k x k, symmetric.
///
/// Entry (i, j) averages v(S+i+j) - v(S+i) - v(S+j) + v(S) over the coalitions S without i and j, by
/// s! (k-s-2)! / (k-1)! (Shapley) or 2^-(k-2) (Banzhaf). The same definition for a single player is the
/// player's value, and stands on the diagonal. O(2^k k^2) a case.
std::vector<double> interactions(const CompleteGame& game, Index index);

}  // namespace moetrace::coalition
