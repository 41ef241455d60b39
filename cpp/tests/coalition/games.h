#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "moetrace/coalition/game.h"

namespace moetrace::coalition {

/// Values of every coalition of one case, by a rule on masks.
template <class Rule>
std::vector<double> values_of(int players, Rule rule) {
  std::vector<double> values;
  for (Mask mask = 0; mask < Mask{1} << players; ++mask) values.push_back(rule(mask));
  return values;
}

/// Irregular values, the same in every run and on every platform.
inline std::vector<double> irregular(int players, std::int64_t cases) {
  std::vector<double> values;
  std::uint64_t state = 1;
  for (std::int64_t cell = 0; cell < cases << players; ++cell) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    values.push_back(static_cast<double>(state >> 40) / (1 << 23) - 1);
  }
  return values;
}

inline Table complete(const std::vector<double>& values, int players) {
  const std::int64_t columns = std::int64_t{1} << players;
  return {values, static_cast<std::int64_t>(values.size()) / columns, columns};
}

/// Every mask of k players, the empty one included: the columns of a complete table.
inline std::vector<Mask> columns_of(int players) {
  std::vector<Mask> masks{0};
  for (const Mask mask : subsets(players)) masks.push_back(mask);
  return masks;
}

}  // namespace moetrace::coalition
