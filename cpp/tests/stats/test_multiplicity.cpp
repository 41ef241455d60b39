#include <doctest/doctest.h>

#include <vector>

#include "moetrace/stats/multiplicity.h"

using namespace moetrace::stats;

namespace {

void check(const std::vector<double>& found, const std::vector<double>& expected) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) CHECK(found[i] == doctest::Approx(expected[i]));
}

}  // namespace

TEST_CASE("Holm and Benjamini-Hochberg by hand") {
  const std::vector<double> p = {0.01, 0.04, 0.03, 0.005};
  check(adjust_holm(p), {0.03, 0.06, 0.06, 0.02});
  check(adjust_benjamini_hochberg(p), {0.02, 0.04, 0.04, 0.02});
  check(adjust_holm(std::vector<double>{0.9, 0.8}), {1.0, 1.0});
  check(adjust_holm({}), {});
  check(adjust_benjamini_hochberg({}), {});
}

TEST_CASE("step-down values never fall along the order") {
  check(monotone(std::vector<double>{0.3, 0.1, 0.2}, std::vector<std::int64_t>{2, 1, 0}), {0.3, 0.2, 0.2});
}
