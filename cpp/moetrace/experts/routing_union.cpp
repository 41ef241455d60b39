#include "moetrace/experts/routing_union.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace moetrace::experts {

namespace {

std::int64_t find(std::span<const std::int64_t> experts, std::int64_t wanted) {
  const auto found = std::find(experts.begin(), experts.end(), wanted);
  return found == experts.end() ? -1 : found - experts.begin();
}

}  // namespace

std::int64_t RoutingUnion::clean_slot(std::int64_t wanted) const noexcept {
  return find({expert.data(), top_k()}, wanted);
}

RoutingUnion unite(std::span<const std::int64_t> clean, std::span<const float> clean_weight,
                   std::span<const std::int64_t> noised, std::span<const float> noised_weight) {
  const std::size_t top_k = clean.size();
  if (noised.size() != top_k || clean_weight.size() != top_k || noised_weight.size() != top_k) {
    throw std::invalid_argument("clean and noised routing must be over as many experts");
  }
  RoutingUnion found;
  const auto add = [&](std::int64_t expert, bool valid, std::int64_t in_clean, std::int64_t in_noised) {
    found.expert.push_back(expert);
    found.valid.push_back(valid);
    found.noised_active.push_back(valid && in_noised >= 0);
    found.clean_place.push_back(valid ? in_clean : -1);
    found.noised_place.push_back(valid ? in_noised : -1);
    const auto weight = [&](std::span<const float> weights, std::int64_t place) {
      return valid && place >= 0 ? weights[static_cast<std::size_t>(place)] : 0.0F;
    };
    found.clean_weight.push_back(weight(clean_weight, in_clean));
    found.noised_weight.push_back(weight(noised_weight, in_noised));
  };
  for (std::size_t place = 0; place < top_k; ++place) {
    add(clean[place], clean[place] >= 0, static_cast<std::int64_t>(place), find(noised, clean[place]));
  }
  for (std::size_t place = 0; place < top_k; ++place) {
    add(noised[place], noised[place] >= 0 && find(clean, noised[place]) < 0, -1,
        static_cast<std::int64_t>(place));
  }
  return found;
}

RoutingUnion together(std::span<const RoutingUnion* const> rows, std::size_t slots) {
  std::vector<std::int64_t> clean, noised;
  const auto add = [](std::vector<std::int64_t>& experts, std::int64_t expert) {
    if (std::find(experts.begin(), experts.end(), expert) == experts.end()) experts.push_back(expert);
  };
  for (const bool in_clean : {true, false}) {
    for (const RoutingUnion* row : rows) {
      for (std::size_t slot = 0; slot < row->slots(); ++slot) {
        if (!row->valid[slot] || (row->clean_place[slot] >= 0) != in_clean) continue;
        const std::int64_t expert = row->expert[slot];
        const bool known = !in_clean && std::find(clean.begin(), clean.end(), expert) != clean.end();
        if (!known) add(in_clean ? clean : noised, expert);
      }
    }
  }
  if (clean.size() > slots || noised.size() > slots) {
    throw std::invalid_argument("the tokens of a place are routed to more experts than it has slots: " +
                                std::to_string(std::max(clean.size(), noised.size())) + " of " +
                                std::to_string(slots));
  }
  RoutingUnion found;
  for (const auto* experts : {&clean, &noised}) {
    for (std::size_t at = 0; at < slots; ++at) {
      const bool valid = at < experts->size();
      const std::int64_t expert = valid ? (*experts)[at] : 0;
      std::int64_t in_clean = -1, in_noised = -1;
      float clean_weight = 0.0F, noised_weight = 0.0F;
      for (const RoutingUnion* row : rows) {
        for (std::size_t slot = 0; valid && slot < row->slots(); ++slot) {
          if (!row->valid[slot] || row->expert[slot] != expert) continue;
          if (row->clean_place[slot] >= 0) in_clean = 0;
          if (row->noised_place[slot] >= 0) in_noised = 0;
          clean_weight += row->clean_weight[slot];
          noised_weight += row->noised_weight[slot];
        }
      }
      found.expert.push_back(expert);
      found.valid.push_back(valid);
      found.noised_active.push_back(in_noised >= 0);
      found.clean_place.push_back(in_clean);
      found.noised_place.push_back(in_noised);
      found.clean_weight.push_back(clean_weight);
      found.noised_weight.push_back(noised_weight);
    }
  }
  return found;
}

}  // namespace moetrace::experts
