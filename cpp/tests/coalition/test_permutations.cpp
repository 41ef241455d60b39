#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <stdexcept>

#include "moetrace/coalition/permutations.h"

using namespace moetrace::coalition;
using Cells = std::vector<std::int64_t>;

TEST_CASE("every row is a permutation, whatever the number of players") {
  for (const int players : {1, 2, 3, 17, 63}) {
    const Cells cells = sample_permutations(players, 50, 7, 3, false);
    CHECK(Permutations(cells, players).size() == 50);
  }
}

TEST_CASE("a longer sample begins with a shorter one; pairs hold the plain rows") {
  const Cells longer = sample_permutations(6, 20, 1, 2, false),
              shorter = sample_permutations(6, 8, 1, 2, false);
  CHECK(std::equal(shorter.begin(), shorter.end(), longer.begin()));
  const Cells pairs = sample_permutations(6, 40, 1, 2, true);
  const Permutations rows(longer, 6), paired(pairs, 6);
  for (std::size_t index = 0; index < rows.size(); ++index) {
    CHECK(std::ranges::equal(rows.row(index), paired.row(2 * index)));
  }
  CHECK_NOTHROW(paired.check_antithetic());
  CHECK_THROWS_WITH_AS(rows.check_antithetic(), doctest::Contains("is not row 0 reversed"),
                       std::invalid_argument);
}

TEST_CASE("seed and stream are all that matters") {
  const Cells base = sample_permutations(12, 4, 1, 2, false);
  CHECK(base == sample_permutations(12, 4, 1, 2, false));
  CHECK(base != sample_permutations(12, 4, 2, 2, false));
  CHECK(base != sample_permutations(12, 4, 1, 3, false));
  CHECK(base != sample_permutations(12, 4, 1 + (std::uint64_t{1} << 32), 2, false));
  CHECK(base != sample_permutations(12, 4, 1, 2 + (std::uint64_t{1} << 32), false));
}

TEST_CASE("each player is in each place equally often") {
  constexpr std::int64_t kCount = 30000;
  const Cells cells = sample_permutations(5, kCount, 0, 0, false);
  std::array<std::array<int, 5>, 5> seen{};
  for (std::size_t cell = 0; cell < cells.size(); ++cell)
    ++seen[cell % 5][static_cast<std::size_t>(cells[cell])];
  // Standard deviation sqrt(30000 * 0.2 * 0.8) = 69; five of them.
  for (const auto& place : seen) {
    for (const int count : place) CHECK(std::abs(count - kCount / 5) < 345);
  }
}

TEST_CASE("prefixes, each once") {
  const Cells cells{0, 1, 2, 1, 0, 2};
  CHECK(prefix_coalitions(Permutations(cells, 3)) == std::vector<Mask>{1, 2, 3, 7});
  Cells order(kMaxPlayers);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto masks = prefix_coalitions(Permutations(order, kMaxPlayers));
  CHECK(masks.size() == kMaxPlayers);
  CHECK(masks.back() == (Mask{1} << kMaxPlayers) - 1);
}

TEST_CASE("what is no sample") {
  for (const int players : {0, 64, -1}) {
    CHECK_THROWS_AS(sample_permutations(players, 2, 0, 0, false), std::invalid_argument);
  }
  for (const std::int64_t count : {std::int64_t{0}, std::int64_t{-2}, std::int64_t{1} << 32}) {
    CHECK_THROWS_AS(sample_permutations(4, count, 0, 0, false), std::invalid_argument);
  }
  CHECK_THROWS_WITH_AS(sample_permutations(4, 3, 0, 0, true), doctest::Contains("odd count of 3"),
                       std::invalid_argument);
}

TEST_CASE("what is no permutation") {
  const Cells repeated{0, 1, 1, 1}, beyond{0, 2}, negative{0, -1}, half{0, 1, 0}, odd{0, 1, 1, 0, 0, 1};
  CHECK_THROWS_WITH_AS(Permutations(repeated, 2), doctest::Contains("row 1 is no permutation"),
                       std::invalid_argument);
  CHECK_THROWS_AS(Permutations(beyond, 2), std::invalid_argument);
  CHECK_THROWS_AS(Permutations(negative, 2), std::invalid_argument);
  CHECK_THROWS_AS(Permutations(half, 2), std::invalid_argument);
  CHECK_THROWS_AS(Permutations({}, 2), std::invalid_argument);
  CHECK_THROWS_AS(Permutations(half, 64), std::invalid_argument);
  CHECK_THROWS_WITH_AS(Permutations(odd, 2).check_antithetic(), doctest::Contains("expected an even count"),
                       std::invalid_argument);
}
