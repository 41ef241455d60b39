#include "moetrace/coalition/mask.h"

#include <bit>
#include <numeric>
#include <stdexcept>

namespace moetrace::coalition {

std::vector<Mask> subsets(int players) {
  if (players < 1 || players > kMaxCompletePlayers) {
    throw std::invalid_argument("found " + std::to_string(players) + " players; expected 1 to " +
                                std::to_string(kMaxCompletePlayers) +
                                ": sample permutations of a larger set of players");
  }
  std::vector<Mask> masks((std::size_t{1} << players) - 1);
  std::iota(masks.begin(), masks.end(), Mask{1});
  return masks;
}

std::string describe(Mask coalition) {
  std::string text = "{";
  for (Mask left = coalition; left != 0; left &= left - 1) {
    if (left != coalition) text += ", ";
    text += std::to_string(std::countr_zero(left));
  }
  return text + "}";
}

}  // namespace moetrace::coalition
