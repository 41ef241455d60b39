#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "games.h"

using namespace moetrace::coalition;

TEST_CASE("subsets are all masks but the empty one") {
  CHECK(subsets(1) == std::vector<Mask>{1});
  CHECK(subsets(3) == std::vector<Mask>{1, 2, 3, 4, 5, 6, 7});
  CHECK(subsets(20).size() == (1U << 20) - 1);
  CHECK(subsets(20).back() == (1U << 20) - 1);
  CHECK_THROWS_WITH_AS(subsets(0), doctest::Contains("found 0 players"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(subsets(21), doctest::Contains("sample permutations"), std::invalid_argument);
}

TEST_CASE("a message shows players") {
  CHECK(describe(0) == "{}");
  CHECK(describe(0b101) == "{0, 2}");
  CHECK(describe(Mask{1} << 63) == "{63}");
}

TEST_CASE("a complete game has 2^k columns of finite values") {
  const std::vector<double> values(16);
  CHECK(CompleteGame({values, 2, 8}).players() == 3);
  CHECK(CompleteGame({values, 2, 8}).row(1).data() == values.data() + 8);
  CHECK(CompleteGame({{}, 0, 4}).cases() == 0);
  CHECK_THROWS_WITH_AS(CompleteGame({values, 16, 1}), doctest::Contains("found 1 columns"),
                       std::invalid_argument);
  CHECK_THROWS_AS(CompleteGame({{}, 0, 0}), std::invalid_argument);
  CHECK_THROWS_AS(CompleteGame({{}, 0, 6}), std::invalid_argument);
  CHECK_THROWS_AS(CompleteGame({{}, 0, 1 << 21}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(CompleteGame({values, 3, 8}), doctest::Contains("16 values; expected 3 cases x 8"),
                       std::invalid_argument);
  CHECK_THROWS_AS(CompleteGame({{}, -1, 8}), std::invalid_argument);
}

TEST_CASE("a value that isn't finite is named") {
  std::vector<double> values(16);
  values[13] = std::nan("");
  CHECK_THROWS_WITH_AS(CompleteGame({values, 2, 8}),
                       doctest::Contains("case 1 has the value nan for coalition {0, 2} (column 5)"),
                       std::invalid_argument);
  values[13] = std::numeric_limits<double>::infinity();
  const std::vector<Mask> listed{1, 2, 3, 4, 5, 8, 7, 6};
  CHECK_THROWS_WITH_AS(ListedGame({values, 2, 8}, listed),
                       doctest::Contains("case 1 has the value inf for coalition {3} (column 5)"),
                       std::invalid_argument);
}

TEST_CASE("a listed game finds its columns") {
  const std::vector<double> values{1, 2, 3, 4, 5, 6};
  const std::vector<Mask> listed{6, 2, 4}, with_empty{6, 0, 4};
  const ListedGame game({values, 2, 3}, listed);
  CHECK(game.grand() == 6);
  CHECK(game.column(6) == 0);
  CHECK(game.column(4) == 2);
  CHECK(game.row(1)[game.column(2)] == 5);
  CHECK(game.empty_value(1) == 0);
  CHECK(ListedGame({values, 2, 3}, with_empty).empty_value(1) == 5);
  CHECK_THROWS_WITH_AS(game.column(3), doctest::Contains("coalition {0, 1} has no value"),
                       std::invalid_argument);
  CHECK_THROWS_AS(game.column(~Mask{0}), std::invalid_argument);
}

TEST_CASE("lists that are no game") {
  const std::vector<double> values(3);
  const auto refused = [&](std::vector<Mask> listed, const char* message) {
    CHECK_THROWS_WITH_AS(ListedGame({values, 1, 3}, listed), doctest::Contains(message),
                         std::invalid_argument);
  };
  refused({1, 2}, "3 columns of values for 2 coalitions");
  refused({1, 2, 1}, "coalition {0} is listed twice, in columns 0 and 2");
  refused({1, 2, Mask{1} << 63}, "player 63");
  CHECK_THROWS_WITH_AS(ListedGame({{}, 0, 0}, {}), doctest::Contains("no players"), std::invalid_argument);
}
