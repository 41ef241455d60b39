#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "moetrace/stats/resample.h"

using namespace moetrace::stats;

namespace {

std::vector<std::uint32_t> counts_of(std::span<const std::uint32_t> rows, std::size_t units) {
  std::vector<std::uint32_t> counts(units);
  for (const std::uint32_t row : rows) ++counts.at(row);
  return counts;
}

}  // namespace

TEST_CASE("a resample holds as many draws as there are cases, or clusters") {
  const std::vector<std::int32_t> labels = {0, 1, 1, 2, 2, 2};
  const Draws cases = Resampler(6, {}).draw(0, 0, 40);
  const Draws clusters = Resampler(6, {labels, 3}).draw(0, 0, 40);
  REQUIRE(cases.count() == 40);
  for (std::size_t b = 0; b < 40; ++b) {
    CHECK(cases.rows_of(b).size() == 6);
    CHECK(cases.cases[b] == 6.0);
    const auto counts = counts_of(clusters.rows_of(b), 3);
    CHECK(std::accumulate(counts.begin(), counts.end(), 0U) == 3);
    CHECK(clusters.cases[b] == counts[0] * 1.0 + counts[1] * 2.0 + counts[2] * 3.0);
  }
}

TEST_CASE("a resample is a function of seed and number, and its rows ascend") {
  const std::vector<std::int32_t> labels = {0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3};
  for (const Grouping& grouping : {Grouping{}, Grouping{labels, 4}, Grouping{labels, 4, true}}) {
    const Resampler resampler(11, grouping);
    const Draws all = resampler.draw(5, 0, 30);
    for (std::size_t b = 0; b < 30; ++b) {
      const Draws one = resampler.draw(5, b, 1);
      const auto rows = all.rows_of(b);
      CHECK(std::equal(rows.begin(), rows.end(), one.rows.begin(), one.rows.end()));
      CHECK(std::is_sorted(rows.begin(), rows.end()));
      CHECK(one.cases[0] == all.cases[b]);
    }
    CHECK(resampler.draw(6, 0, 30).rows != all.rows);
  }
}

TEST_CASE("two stages draw a cluster's cases from that cluster alone") {
  const std::vector<std::int32_t> labels = {0, 0, 0, 1, 1};
  const Draws draws = Resampler(5, {labels, 2, true}).draw(1, 0, 50);
  for (std::size_t b = 0; b < 50; ++b) {
    const auto counts = counts_of(draws.rows_of(b), 5);
    const std::uint32_t first = counts[0] + counts[1] + counts[2], second = counts[3] + counts[4];
    CHECK(first % 3 == 0);
    CHECK(second % 2 == 0);
    CHECK(first / 3 + second / 2 == 2);
    CHECK(draws.cases[b] == first + second);
  }
}
