#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "games.h"
#include "moetrace/coalition/additivity.h"
#include "moetrace/coalition/smallest.h"

using namespace moetrace::coalition;

TEST_CASE("fewest players, then the highest value, then the lowest mask") {
  const std::vector<double> values{0, 0.8, 0.9, 0.9, 0.9, 1.0, 1.0, 1.0};
  const auto masks = columns_of(3);
  const ListedGame game({values, 1, 8}, masks);
  CHECK(smallest_coalition(game, 0.8).coalitions == std::vector<Mask>{0b010});
  const auto two = smallest_coalition(game, 0.95);
  CHECK(two.coalitions == std::vector<Mask>{0b101});
  CHECK(two.sizes == std::vector<std::int64_t>{2});
  CHECK(two.values == std::vector<double>{1.0});
}

TEST_CASE("none where all together gain nothing, or nobody gains enough") {
  const std::vector<double> values{0, 1, 1, -1, 0, 1, 1, 0, 0, 0.2, 0.2, 1};
  const auto masks = columns_of(2);
  const ListedGame game({values, 3, 4}, masks);
  const auto found = smallest_coalition(game, 1.0);
  CHECK(found.sizes == std::vector<std::int64_t>{-1, -1, 2});
  CHECK(found.coalitions == std::vector<Mask>{0, 0, 3});
  CHECK(std::isnan(found.values[0]));
  CHECK(smallest_coalition(game, 1.5).sizes == std::vector<std::int64_t>{-1, -1, -1});
}

TEST_CASE("a share must be positive and finite, and the grand coalition listed") {
  const std::vector<double> values{1, 1};
  const std::vector<Mask> masks{1, 2};
  const ListedGame game({values, 1, 2}, masks);
  for (const double share : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH_AS(smallest_coalition(game, share), doctest::Contains("positive number"),
                         std::invalid_argument);
  }
  CHECK_THROWS_WITH_AS(smallest_coalition(game, 0.5), doctest::Contains("coalition {0, 1} has no value"),
                       std::invalid_argument);
  CHECK_THROWS_AS(additivity(game), std::invalid_argument);
}

TEST_CASE("singles against all together, as gains over the empty coalition") {
  const std::vector<double> values{1, 1.5, 1.25, 2, 0, 3, 4, 5};
  const auto masks = columns_of(2);
  const auto found = additivity(ListedGame({values, 2, 4}, masks));
  CHECK(found.singles == std::vector<double>{0.75, 7});
  CHECK(found.grand == std::vector<double>{1, 5});
  CHECK(found.difference == std::vector<double>{0.25, -2});
}

TEST_CASE("players with gaps between them") {
  const std::vector<double> values{1.0, 0.5, 0.75};
  const std::vector<Mask> masks{0b10010, 0b00010, 0b10000};
  const ListedGame game({values, 1, 3}, masks);
  CHECK(additivity(game).difference == std::vector<double>{-0.25});
  CHECK(smallest_coalition(game, 0.6).coalitions == std::vector<Mask>{0b10000});
}
