#include "moetrace/coalition/smallest.h"

#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace moetrace::coalition {

namespace {

struct Candidate {
  Mask coalition = 0;
  double value = std::numeric_limits<double>::quiet_NaN();

  int size() const noexcept { return std::popcount(coalition); }

  bool beats(const Candidate& other) const noexcept {
    if (other.coalition == 0) return true;
    if (size() != other.size()) return size() < other.size();
    if (value != other.value) return value > other.value;
    return coalition < other.coalition;
  }
};

Candidate smallest_of_case(const ListedGame& game, std::int64_t index, double share, std::size_t grand) {
  const auto values = game.row(index);
  const double none = game.empty_value(index);
  const double full = values[grand] - none;
  Candidate best;
  if (full <= 0) return best;
  for (std::size_t column = 0; column < values.size(); ++column) {
    const Candidate candidate{game.coalitions()[column], values[column]};
    const bool reaches = candidate.coalition != 0 && candidate.value - none >= share * full;
    if (reaches && candidate.beats(best)) best = candidate;
  }
  return best;
}

}  // namespace

SmallestCoalition smallest_coalition(const ListedGame& game, double share) {
  if (!std::isfinite(share) || share <= 0) {
    throw std::invalid_argument("found a share of " + std::to_string(share) +
                                "; expected a positive number, 1 for all of the grand coalition's value");
  }
  const std::size_t grand = game.column(game.grand());
  SmallestCoalition result;
  for (std::int64_t index = 0; index < game.cases(); ++index) {
    const Candidate best = smallest_of_case(game, index, share, grand);
    result.sizes.push_back(best.coalition == 0 ? -1 : best.size());
    result.coalitions.push_back(best.coalition);
    result.values.push_back(best.value);
  }
  return result;
}

}  // namespace moetrace::coalition
