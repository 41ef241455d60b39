#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moetrace::coalition {

/// A coalition: bit j is set when player j belongs to it.
using Mask = std::uint64_t;

/// Players of a game whose coalitions are listed; the top bit stays free, so a mask fits a signed integer.
inline constexpr int kMaxPlayers = 63;

/// Players of a game of which every coalition has a value: 2^20 columns a case.
inline constexpr int kMaxCompletePlayers = 20;

/// Every non-empty coalition of k players, ascending. Throws std::invalid_argument unless
/// 1 <= k <= kMaxCompletePlayers.
std::vector<Mask> subsets(int players);

/// Its players in ascending order, as a message shows them: "{0, 2}".
std::string describe(Mask coalition);

}  // namespace moetrace::coalition
