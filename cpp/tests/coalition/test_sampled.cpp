#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "games.h"
#include "moetrace/coalition/indices.h"
#include "moetrace/coalition/sampled.h"

using namespace moetrace::coalition;
using Cells = std::vector<std::int64_t>;

namespace {

Cells all_orders(int players) {
  Cells order(static_cast<std::size_t>(players)), cells;
  std::iota(order.begin(), order.end(), std::int64_t{0});
  do cells.insert(cells.end(), order.begin(), order.end());
  while (std::next_permutation(order.begin(), order.end()));
  return cells;
}

}  // namespace

TEST_CASE("over all orders the estimate is the Shapley value") {
  for (int players = 2; players <= 5; ++players) {
    const auto values = irregular(players, 2);
    const auto masks = columns_of(players);
    const Cells cells = all_orders(players);
    const auto table = complete(values, players);
    const auto found = sampled_shapley(Permutations(cells, players), ListedGame(table, masks), false);
    const auto exact = player_values(CompleteGame(table), Index::shapley);
    REQUIRE(found.means.size() == exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CHECK(std::abs(found.means[i] - exact[i]) < 1e-12);
      CHECK(found.standard_errors[i] > 0);
    }
  }
}

TEST_CASE("the standard error of two draws by hand") {
  const std::vector<double> values{0, 2, 1, 5};
  const std::vector<Mask> masks{0, 1, 2, 3};
  const Cells cells{0, 1, 1, 0};
  const ListedGame game({values, 1, 4}, masks);
  const auto plain = sampled_shapley(Permutations(cells, 2), game, false);
  CHECK(plain.means == std::vector<double>{3, 2});
  CHECK(plain.standard_errors == std::vector<double>{1, 1});  // |4 - 2| / 2 and |1 - 3| / 2
  const auto pair = sampled_shapley(Permutations(cells, 2), game, true);
  CHECK(pair.means == plain.means);
  CHECK(std::isnan(pair.standard_errors[0]));
}

TEST_CASE("coalitions in any order, the empty one left out") {
  const std::vector<double> values{5, 1, 2};
  const std::vector<Mask> masks{3, 2, 1};
  const Cells cells{0, 1};
  const auto found = sampled_shapley(Permutations(cells, 2), ListedGame({values, 1, 3}, masks), false);
  CHECK(found.means == std::vector<double>{2, 3});
}

TEST_CASE("a coalition that forms must have a value, and pairs must be pairs") {
  const std::vector<double> values{5, 1};
  const std::vector<Mask> masks{3, 2};
  const Cells cells{1, 0, 0, 1}, same{1, 0, 1, 0};
  const ListedGame game({values, 1, 2}, masks);
  CHECK_THROWS_WITH_AS(sampled_shapley(Permutations(cells, 2), game, false),
                       doctest::Contains("coalition {0} has no value"), std::invalid_argument);
  CHECK_THROWS_AS(sampled_shapley(Permutations(same, 2), game, true), std::invalid_argument);
}
