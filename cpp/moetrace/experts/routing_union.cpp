#include "moetrace/experts/routing_union.h"

#include <algorithm>
#include <stdexcept>

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

}  // namespace moetrace::experts
