#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "games.h"
#include "moetrace/coalition/indices.h"

using namespace moetrace::coalition;

namespace {

constexpr double kRounding = 1e-12;

void check_close(const std::vector<double>& found, const std::vector<double>& expected) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(found[i] - expected[i]) < kRounding);
  }
}

/// What players add on joining, averaged over every order.
std::vector<double> over_all_orders(const std::vector<double>& values, int players) {
  std::vector<int> order(static_cast<std::size_t>(players));
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> total(order.size());
  double orders = 0;
  do {
    Mask joined = 0;
    for (const int player : order) {
      const Mask with = joined | Mask{1} << player;
      total[static_cast<std::size_t>(player)] += values[with] - values[joined];
      joined = with;
    }
    ++orders;
  } while (std::next_permutation(order.begin(), order.end()));
  for (double& value : total) value /= orders;
  return total;
}

}  // namespace

TEST_CASE("Shapley values are means over all orders") {
  for (int players = 1; players <= 6; ++players) {
    const auto values = irregular(players, 1);
    check_close(player_values(CompleteGame(complete(values, players)), Index::shapley),
                over_all_orders(values, players));
  }
}

TEST_CASE("Shapley values sum to the grand coalition's gain, for up to the most players") {
  for (const int players : {1, 2, 9, 16, kMaxCompletePlayers}) {
    const auto values = irregular(players, 1);
    const auto shares = player_values(CompleteGame(complete(values, players)), Index::shapley);
    CHECK(std::abs(std::accumulate(shares.begin(), shares.end(), 0.0) - (values.back() - values.front())) <
          kRounding);
  }
}

TEST_CASE("cases don't mix") {
  const int players = 4;
  const auto values = irregular(players, 3);
  const auto together = interactions(CompleteGame(complete(values, players)), Index::shapley);
  for (std::size_t index = 0; index < 3; ++index) {
    const std::vector<double> alone(values.begin() + static_cast<std::ptrdiff_t>(16 * index),
                                    values.begin() + static_cast<std::ptrdiff_t>(16 * index + 16));
    const auto square = interactions(CompleteGame(complete(alone, players)), Index::shapley);
    CHECK(
        std::equal(square.begin(), square.end(), together.begin() + static_cast<std::ptrdiff_t>(16 * index)));
  }
}

TEST_CASE("a majority of three") {
  const auto values = values_of(3, [](Mask mask) { return std::popcount(mask) >= 2 ? 1.0 : 0.0; });
  const CompleteGame game(complete(values, 3));
  check_close(player_values(game, Index::shapley), {1.0 / 3, 1.0 / 3, 1.0 / 3});
  check_close(player_values(game, Index::banzhaf), {0.5, 0.5, 0.5});
  // With the third player absent a pair wins together (+1), with it present one of the pair is enough (-1).
  check_close(interactions(game, Index::banzhaf), {0.5, 0, 0, 0, 0.5, 0, 0, 0, 0.5});
}

TEST_CASE("unanimity: the carrier shares, the others get nothing") {
  const Mask carrier = 0b10110;
  const auto values = values_of(5, [](Mask mask) { return (mask & carrier) == carrier ? 1.0 : 0.0; });
  const CompleteGame game(complete(values, 5));
  check_close(player_values(game, Index::shapley), {0, 1.0 / 3, 1.0 / 3, 0, 1.0 / 3});
  check_close(player_values(game, Index::banzhaf), {0, 0.25, 0.25, 0, 0.25});
  for (const Index index : {Index::shapley, Index::banzhaf}) {
    const auto square = interactions(game, index);
    for (std::size_t i = 0; i < 5; ++i) {
      for (std::size_t j = 0; j < 5; ++j) {
        if (i != j)
          CHECK(square[5 * i + j] == doctest::Approx((carrier >> i & carrier >> j & 1) != 0 ? 0.5 : 0));
      }
    }
  }
}

TEST_CASE("one player, two players, no cases") {
  const std::vector<double> one{1, 4}, two{0, 2, 1, 5};
  check_close(player_values(CompleteGame(complete(one, 1)), Index::shapley), {3});
  check_close(interactions(CompleteGame(complete(one, 1)), Index::banzhaf), {3});
  check_close(interactions(CompleteGame(complete(two, 2)), Index::shapley), {3, 2, 2, 2});
  CHECK(interactions(CompleteGame({{}, 0, 8}), Index::shapley).empty());
}
