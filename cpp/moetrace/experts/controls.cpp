#include "moetrace/experts/controls.h"

#include <algorithm>
#include <cmath>

namespace moetrace::experts {

std::int64_t matched_control(std::span<const std::int64_t> experts, std::span<const float> weights,
                             std::int64_t anchor) {
  const float weight = weights[static_cast<std::size_t>(anchor)];
  std::int64_t best = -1;
  float least = 0.0F;
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    if (static_cast<std::int64_t>(slot) == anchor) continue;
    const float distance = std::fabs(weights[slot] - weight);
    const bool closer = best < 0 || distance < least ||
                        (distance == least && experts[slot] < experts[static_cast<std::size_t>(best)]);
    if (!closer) continue;
    best = static_cast<std::int64_t>(slot);
    least = distance;
  }
  return best;
}

float equal_norm_factor(float own, float other) { return own > 0.0F ? std::min(own, other) / own : 0.0F; }

}  // namespace moetrace::experts
