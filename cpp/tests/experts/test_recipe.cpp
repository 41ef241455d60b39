#include <doctest/doctest.h>

#include <array>
#include <stdexcept>

#include "moetrace/experts/recipe.h"

using namespace moetrace::experts;

namespace {

/// Three clean-routed experts (7, 2, 5) and three noised-routed ones (2, 9, 7), of which only 9 is new.
struct Fixture {
  std::array<std::int64_t, 6> expert{7, 2, 5, 2, 9, 7};
  std::array<bool, 6> valid{true, true, true, false, true, false};
  std::array<float, 6> weight{0.5F, 0.3F, 0.2F, 0.0F, 0.0F, 0.0F};
  std::array<float, 6> norm{4.0F, 1.0F, 2.0F, 0.0F, 3.0F, 0.0F};
  PlayersView view() const { return {expert, valid, weight, norm}; }
};

using Factors = std::vector<float>;

}  // namespace

TEST_CASE("clean, union, places, subsets and named experts") {
  const Fixture game;
  CHECK(coefficients({.kind = Kind::kClean}, game.view()) == Factors{1, 1, 1, 0, 0, 0});
  CHECK(coefficients({.kind = Kind::kUnion}, game.view()) == Factors{1, 1, 1, 0, 1, 0});
  CHECK(coefficients({.kind = Kind::kPlace, .place = 1}, game.view()) == Factors{0, 1, 0, 0, 0, 0});
  CHECK(coefficients({.kind = Kind::kPlace, .place = 3}, game.view()) == Factors{0, 0, 0, 0, 0, 0});
  CHECK(coefficients({.kind = Kind::kSubset, .subset = 0b011101}, game.view()) == Factors{1, 0, 1, 0, 1, 0});
  CHECK(coefficients({.kind = Kind::kExperts, .experts = {9, 2, 11}}, game.view()) ==
        Factors{0, 1, 0, 0, 1, 0});
}

TEST_CASE("the matched control has the closest weight; of equally close ones the lowest index") {
  Fixture game;
  CHECK(matched_place(7, game.view()) == 1);
  CHECK(matched_place(5, game.view()) == 1);
  CHECK(matched_place(2, game.view()) == 2);
  CHECK(matched_place(9, game.view()) == -1);  // not clean-routed
  game.weight = {0.25F, 0.5F, 0.75F, 0, 0, 0};
  CHECK(matched_place(2, game.view()) == 2);  // 7 and 5 are as far; 5 is lower
  game.expert[2] = 8;
  CHECK(matched_place(2, game.view()) == 0);
}

TEST_CASE("anchor and control, raw and at equal norm") {
  const Fixture game;
  const Recipe anchor{.kind = Kind::kAnchor, .experts = {7}};
  const Recipe matched{.kind = Kind::kMatched, .experts = {7}};
  CHECK(coefficients(anchor, game.view()) == Factors{1, 0, 0, 0, 0, 0});
  CHECK(coefficients(matched, game.view()) == Factors{0, 1, 0, 0, 0, 0});
  Recipe equal = anchor;
  equal.equal_norm = true;
  CHECK(coefficients(equal, game.view()) == Factors{0.25F, 0, 0, 0, 0, 0});
  equal.kind = Kind::kMatched;
  CHECK(coefficients(equal, game.view()) == Factors{0, 1, 0, 0, 0, 0});
}

TEST_CASE("an anchor that isn't clean-routed, or stands alone, adds nothing") {
  Fixture game;
  CHECK(coefficients({.kind = Kind::kAnchor, .experts = {9}}, game.view()) == Factors(6, 0.0F));
  const std::array<std::int64_t, 2> expert{4, 4};
  const std::array<bool, 2> valid{true, false};
  const std::array<float, 2> one{1.0F, 0.0F};
  const PlayersView alone{expert, valid, one, one};
  CHECK(matched_place(4, alone) == -1);
  CHECK(coefficients({.kind = Kind::kMatched, .experts = {4}}, alone) == Factors(2, 0.0F));
}

TEST_CASE("a patch vector of norm zero stays zero at equal norm") {
  Fixture game;
  game.norm[1] = 0.0F;
  Recipe equal{.kind = Kind::kAnchor, .experts = {7}, .equal_norm = true};
  CHECK(coefficients(equal, game.view()) == Factors(6, 0.0F));
  equal.kind = Kind::kMatched;
  CHECK(coefficients(equal, game.view()) == Factors(6, 0.0F));
}

TEST_CASE("an anchor needs a name") {
  const Fixture game;
  CHECK_THROWS_AS(coefficients({.kind = Kind::kAnchor}, game.view()), std::out_of_range);
}
