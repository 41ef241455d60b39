#include "moetrace/coalition/permutations.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "moetrace/stats/random.h"

namespace moetrace::coalition {

namespace {

/// A purpose of its own: an order shares no counter with the draws of the statistics.
constexpr auto kOrder = static_cast<stats::Purpose>(64);

void check_players(int players) {
  if (players < 1 || players > kMaxPlayers) {
    throw std::invalid_argument("found " + std::to_string(players) + " players; expected 1 to " +
                                std::to_string(kMaxPlayers));
  }
}

void check_count(int players, std::int64_t count, bool antithetic) {
  constexpr std::int64_t kDraws = std::int64_t{1} << 32;
  if (count < 1 || count > kDraws / players) {
    throw std::invalid_argument("found a count of " + std::to_string(count) +
                                " permutations; expected 1 to " + std::to_string(kDraws / players) + " of " +
                                std::to_string(players) + " players");
  }
  if (antithetic && count % 2 != 0) {
    throw std::invalid_argument("found an odd count of " + std::to_string(count) +
                                " antithetic permutations; expected an even one: they come in pairs");
  }
}

/// Fisher and Yates: step s exchanges place s with one of the places from s on.
void shuffle(std::span<std::int64_t> order, const stats::Stream& draws, std::uint32_t first) {
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::size_t step = 0; step + 1 < order.size(); ++step) {
    const auto left = static_cast<std::uint32_t>(order.size() - step);
    std::swap(order[step], order[step + draws.below(left, first + static_cast<std::uint32_t>(step))]);
  }
}

}  // namespace

Permutations::Permutations(std::span<const std::int64_t> cells, int players)
    : cells_(cells), players_(players) {
  check_players(players);
  if (cells.empty() || cells.size() % static_cast<std::size_t>(players) != 0) {
    throw std::invalid_argument("found " + std::to_string(cells.size()) +
                                " entries of permutations; expected at least one whole row of " +
                                std::to_string(players));
  }
  const Mask everyone = (Mask{1} << players) - 1;
  for (std::size_t index = 0; index < size(); ++index) {
    Mask seen = 0;
    for (const std::int64_t player : row(index)) {
      if (player >= 0 && player < players) seen |= Mask{1} << player;
    }
    if (seen != everyone) {
      throw std::invalid_argument("row " + std::to_string(index) +
                                  " is no permutation; expected each player of 0 to " +
                                  std::to_string(players - 1) + " once");
    }
  }
}

void Permutations::check_antithetic() const {
  if (size() % 2 != 0) {
    throw std::invalid_argument("found " + std::to_string(size()) +
                                " antithetic permutations; expected an even count: they come in pairs");
  }
  for (std::size_t index = 0; index < size(); index += 2) {
    const auto order = row(index), reverse = row(index + 1);
    if (!std::equal(order.begin(), order.end(), reverse.rbegin(), reverse.rend())) {
      throw std::invalid_argument("row " + std::to_string(index + 1) + " is not row " +
                                  std::to_string(index) +
                                  " reversed; expected antithetic pairs: sample them as such");
    }
  }
}

std::vector<std::int64_t> sample_permutations(int players, std::int64_t count, std::uint64_t seed,
                                              std::uint64_t stream, bool antithetic) {
  check_players(players);
  check_count(players, count, antithetic);
  const stats::Stream draws(seed, kOrder, stream);
  const auto width = static_cast<std::size_t>(players);
  const std::size_t step = antithetic ? 2 : 1;
  std::vector<std::int64_t> cells(static_cast<std::size_t>(count) * width);
  for (std::size_t index = 0; index < static_cast<std::size_t>(count); index += step) {
    const std::span<std::int64_t> order = std::span(cells).subspan(index * width, width);
    shuffle(order, draws, static_cast<std::uint32_t>(index / step * width));
    if (antithetic) std::reverse_copy(order.begin(), order.end(), cells.data() + (index + 1) * width);
  }
  return cells;
}

std::vector<Mask> prefix_coalitions(const Permutations& permutations) {
  std::vector<Mask> masks;
  masks.reserve(permutations.size() * static_cast<std::size_t>(permutations.players()));
  for (std::size_t index = 0; index < permutations.size(); ++index) {
    Mask joined = 0;
    for (const std::int64_t player : permutations.row(index)) masks.push_back(joined |= Mask{1} << player);
  }
  std::sort(masks.begin(), masks.end());
  masks.erase(std::unique(masks.begin(), masks.end()), masks.end());
  return masks;
}

}  // namespace moetrace::coalition
