#include "moetrace/experts/recipe.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace moetrace::experts {

namespace {

/// Clean place of an expert, -1 where the clean run doesn't route to it.
std::int64_t clean_place(std::int64_t expert, const PlayersView& players) {
  for (std::size_t place = 0; place < players.top_k(); ++place) {
    if (players.expert[place] == expert) return static_cast<std::int64_t>(place);
  }
  return -1;
}

/// Anchor and control exist together or not at all, so that both patches are over the same cases.
void fill_pair(const Recipe& recipe, const PlayersView& players, std::vector<float>& factors) {
  const std::int64_t anchor = clean_place(recipe.experts.at(0), players);
  if (anchor < 0) return;
  const std::int64_t control = matched_place(recipe.experts[0], players);
  if (control < 0) return;
  const auto chosen = static_cast<std::size_t>(recipe.kind == Kind::kAnchor ? anchor : control);
  const auto other = static_cast<std::size_t>(recipe.kind == Kind::kAnchor ? control : anchor);
  const float own = players.norm[chosen];
  const float smaller = std::min(own, players.norm[other]);
  factors[chosen] = !recipe.equal_norm ? 1.0F : own > 0.0F ? smaller / own : 0.0F;
}

}  // namespace

std::int64_t matched_place(std::int64_t anchor, const PlayersView& players) {
  const std::int64_t own = clean_place(anchor, players);
  if (own < 0) return -1;
  const float weight = players.clean_weight[static_cast<std::size_t>(own)];
  std::int64_t best = -1;
  for (std::size_t place = 0; place < players.top_k(); ++place) {
    if (static_cast<std::int64_t>(place) == own) continue;
    const float distance = std::fabs(players.clean_weight[place] - weight);
    if (best >= 0) {
      const auto held = static_cast<std::size_t>(best);
      const float least = std::fabs(players.clean_weight[held] - weight);
      if (distance > least || (distance == least && players.expert[place] > players.expert[held])) continue;
    }
    best = static_cast<std::int64_t>(place);
  }
  return best;
}

std::vector<float> coefficients(const Recipe& recipe, const PlayersView& players) {
  const std::size_t places = players.expert.size();
  const std::size_t top_k = players.top_k();
  std::vector<float> factors(places, 0.0F);
  for (std::size_t place = 0; place < places; ++place) {
    if (!players.valid[place]) continue;
    bool chosen = false;
    switch (recipe.kind) {
      case Kind::kClean:
        chosen = place < top_k;
        break;
      case Kind::kUnion:
        chosen = true;
        break;
      case Kind::kPlace:
        chosen = static_cast<std::int64_t>(place) == recipe.place;
        break;
      case Kind::kSubset:
        chosen = place < 64 && ((recipe.subset >> place) & 1U) != 0;
        break;
      case Kind::kExperts:
        chosen = std::find(recipe.experts.begin(), recipe.experts.end(), players.expert[place]) !=
                 recipe.experts.end();
        break;
      case Kind::kAnchor:
      case Kind::kMatched:
        break;
    }
    if (chosen) factors[place] = 1.0F;
  }
  if (recipe.kind == Kind::kAnchor || recipe.kind == Kind::kMatched) fill_pair(recipe, players, factors);
  return factors;
}

}  // namespace moetrace::experts
