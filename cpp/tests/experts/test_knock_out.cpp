#include <doctest/doctest.h>

#include <string>

#include "../tensors.h"
#include "moetrace/experts/knock_out.h"
#include "moetrace/hooks/failure.h"

using namespace moetrace;
using namespace moetrace::experts;

namespace {

// Three watched rows with two experts each, of width 2; items are rows 0 and 2.
constexpr std::int64_t kWidth = 2;
const std::vector<float> kContributions{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
const std::vector<std::int64_t> kClean{0, 2};

std::vector<RoutingUnion> routing() {
  const std::vector<std::int64_t> first{4, 1}, second{1, 3};
  const std::vector<float> weight{0.5F, 0.5F};
  return {unite(first, weight, first, weight), unite(second, weight, second, weight)};
}

std::vector<float> vectors(const KnockOut& how) {
  const Tensor given = ops::from_vector(kContributions, {3, 2, kWidth}, ScalarType::Float);
  const Tensor found = how.vectors(given, routing(), kClean, "experts");
  CHECK(ops::shape_of(found) == std::vector<std::int64_t>{2, 4, kWidth});
  return ops::to_vector<float>(found, ScalarType::Float);
}

}  // namespace

TEST_CASE("zero takes each clean-routed expert's contribution away") {
  const std::vector<float> expected{1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 11, 12, 0, 0, 0, 0};
  CHECK(vectors({}) == expected);
}

TEST_CASE("a replacement comes in an expert's place, found by its number") {
  const KnockOut how{true, true, {{{1, 4}, {10, 20, 30, 40}}, {{1, 3}, {50, 60, 70, 80}}}};
  const std::vector<float> expected{-29, -38, -7, -16, 0, 0, 0, 0, -41, -50, -59, -68, 0, 0, 0, 0};
  CHECK(vectors(how) == expected);
}

TEST_CASE("where a router chose anew, what comes is all that changes") {
  const KnockOut how{false, true, {{{1, 4}, {10, 20, 30, 40}}, {{1, 3}, {50, 60, 70, 80}}}};
  const std::vector<float> expected{-30, -40, -10, -20, 0, 0, 0, 0, -50, -60, -70, -80, 0, 0, 0, 0};
  CHECK(vectors(how) == expected);
}

TEST_CASE("an expert without a replacement and vectors of another width are refused") {
  const KnockOut missing{true, true, {{{1, 4}, {0, 0, 0, 0}}, {{1}, {0, 0}}}};
  CHECK_THROWS_WITH_AS(vectors(missing), doctest::Contains("expert 3 is routed to here"), hooks::Failure);
  const KnockOut wide{true, true, {{{1, 4}, {0, 0, 0}}, {{1, 3}, {0, 0, 0, 0}}}};
  CHECK_THROWS_WITH_AS(vectors(wide), doctest::Contains("a vector of width 2"), std::invalid_argument);
}
