#include <doctest/doctest.h>

#include <array>
#include <stdexcept>

#include "moetrace/experts/controls.h"
#include "moetrace/experts/expert_patch.h"

using namespace moetrace::experts;

namespace {

using Factors = std::vector<float>;
using Experts = std::vector<std::int64_t>;

/// Three clean-routed experts (7, 2, 5) and three noised-routed ones (2, 9, 7), of which only 9 is new.
RoutingUnion example() {
  const std::array<std::int64_t, 3> clean{7, 2, 5}, noised{2, 9, 7};
  const std::array<float, 3> clean_weight{0.5F, 0.3F, 0.2F}, noised_weight{0.6F, 0.3F, 0.1F};
  return unite(clean, clean_weight, noised, noised_weight);
}

constexpr std::array<float, 6> kNorm{4.0F, 1.0F, 2.0F, 0.0F, 3.0F, 0.0F};

ExpertPatch patch_of(Chosen chosen) {
  ExpertPatch patch;
  patch.chosen = chosen;
  return patch;
}

Factors factors_of(const ExpertPatch& patch) { return slot_factors(patch, example(), kNorm); }

ExpertPatch pair(Chosen chosen, std::int64_t anchor, bool equal_norm = false) {
  ExpertPatch patch = patch_of(chosen);
  patch.experts = {anchor};
  patch.equal_norm = equal_norm;
  return patch;
}

}  // namespace

TEST_CASE("the union has clean-routed experts first, and noised-routed ones where they are new") {
  const RoutingUnion found = example();
  CHECK(found.expert == Experts{7, 2, 5, 2, 9, 7});
  CHECK(found.valid == std::vector<bool>{true, true, true, false, true, false});
  CHECK(found.noised_active == std::vector<bool>{true, true, false, false, true, false});
  CHECK(found.clean_weight == Factors{0.5F, 0.3F, 0.2F, 0, 0, 0});
  CHECK(found.noised_weight == Factors{0.1F, 0.6F, 0, 0, 0.3F, 0});
  CHECK(found.clean_place == Experts{0, 1, 2, -1, -1, -1});
  CHECK(found.noised_place == Experts{2, 0, -1, -1, 1, -1});
  CHECK(found.clean_slot(5) == 2);
  CHECK(found.clean_slot(9) == -1);
  const std::array<std::int64_t, 1> short_one{7};
  const std::array<float, 1> weight{1.0F};
  CHECK_THROWS_AS(unite(found.expert, found.clean_weight, short_one, weight), std::invalid_argument);
}

TEST_CASE("clean, union, slots, subsets and named experts") {
  CHECK(factors_of(patch_of(Chosen::kClean)) == Factors{1, 1, 1, 0, 0, 0});
  CHECK(factors_of(patch_of(Chosen::kUnion)) == Factors{1, 1, 1, 0, 1, 0});
  ExpertPatch slot = patch_of(Chosen::kSlot);
  slot.slot = 1;
  CHECK(factors_of(slot) == Factors{0, 1, 0, 0, 0, 0});
  slot.noised_slot = true;
  CHECK(factors_of(slot) == Factors{0, 0, 0, 0, 1, 0});
  slot.slot = 0;
  CHECK(factors_of(slot) == Factors(6, 0.0F));  // the clean run has it
  slot.slot = 3;
  CHECK(factors_of(slot) == Factors(6, 0.0F));  // more slots were planned than experts are routed to
  ExpertPatch subset = patch_of(Chosen::kSubset);
  subset.subset = 0b011101;
  CHECK(factors_of(subset) == Factors{1, 0, 1, 0, 1, 0});
  ExpertPatch named = patch_of(Chosen::kExperts);
  named.experts = {9, 2, 11};
  CHECK(factors_of(named) == Factors{0, 1, 0, 0, 1, 0});
}

TEST_CASE("the matched control has the closest weight; of equally close ones the lowest index") {
  Experts experts{7, 2, 5};
  Factors weights{0.5F, 0.3F, 0.2F};
  CHECK(matched_control(experts, weights, 0) == 1);
  CHECK(matched_control(experts, weights, 2) == 1);
  CHECK(matched_control(experts, weights, 1) == 2);
  weights = {0.25F, 0.5F, 0.75F};
  CHECK(matched_control(experts, weights, 1) == 2);  // 7 and 5 are as far; 5 is lower
  experts[2] = 8;
  CHECK(matched_control(experts, weights, 1) == 0);
  CHECK(matched_control(Experts{4}, Factors{1.0F}, 0) == -1);
}

TEST_CASE("anchor and control, raw and at equal norm") {
  CHECK(factors_of(pair(Chosen::kAnchor, 7)) == Factors{1, 0, 0, 0, 0, 0});
  CHECK(factors_of(pair(Chosen::kMatched, 7)) == Factors{0, 1, 0, 0, 0, 0});
  CHECK(factors_of(pair(Chosen::kAnchor, 7, true)) == Factors{0.25F, 0, 0, 0, 0, 0});
  CHECK(factors_of(pair(Chosen::kMatched, 7, true)) == Factors{0, 1, 0, 0, 0, 0});
}

TEST_CASE("an anchor that isn't clean-routed, or stands alone, adds nothing") {
  CHECK(factors_of(pair(Chosen::kAnchor, 9)) == Factors(6, 0.0F));
  const std::array<std::int64_t, 1> expert{4};
  const std::array<float, 1> one{1.0F};
  const RoutingUnion alone = unite(expert, one, expert, one);
  CHECK(slot_factors(pair(Chosen::kMatched, 4), alone, Factors{1, 0}) == Factors(2, 0.0F));
  CHECK(slot_factors(pair(Chosen::kAnchor, 4), alone, Factors{1, 0}) == Factors(2, 0.0F));
}

TEST_CASE("a patch vector of norm zero stays zero at equal norm") {
  const Factors norm{4.0F, 0.0F, 2.0F, 0.0F, 3.0F, 0.0F};
  CHECK(slot_factors(pair(Chosen::kAnchor, 7, true), example(), norm) == Factors(6, 0.0F));
  CHECK(slot_factors(pair(Chosen::kMatched, 7, true), example(), norm) == Factors(6, 0.0F));
}

TEST_CASE("an anchor needs a name") {
  CHECK_THROWS_AS(factors_of(patch_of(Chosen::kAnchor)), std::out_of_range);
}
