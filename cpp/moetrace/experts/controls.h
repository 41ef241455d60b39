#pragma once

#include <cstdint>
#include <span>

namespace moetrace::experts {

/// Slot of the gate-weight-matched control of the expert in slot `anchor` (equation 8): of the other
/// clean-active experts the one with the closest clean routing weight, of equally close ones that with the
/// lowest index. -1 where there is no other. `experts`, `weights`: of the clean-routed slots.
std::int64_t matched_control(std::span<const std::int64_t> experts, std::span<const float> weights,
                             std::int64_t anchor);

/// What scales a patch vector of norm `own` to the smaller of two norms (equation 10); 0 where it is zero.
float equal_norm_factor(float own, float other);

}  // namespace moetrace::experts
