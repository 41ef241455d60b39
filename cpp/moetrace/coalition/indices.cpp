#include "moetrace/coalition/indices.h"

#include <array>
#include <bit>
#include <cmath>

namespace moetrace::coalition {

namespace {

/// One number for each size of a coalition.
using BySize = std::array<double, kMaxCompletePlayers + 1>;

/// What a player adds to each coalition of the others, whose masks close up over the player's bit.
void differentiate(std::span<const double> values, int player, std::vector<double>& out) {
  const std::size_t bit = std::size_t{1} << player;
  out.clear();
  for (std::size_t high = 0; high < values.size(); high += 2 * bit) {
    for (std::size_t mask = high; mask < high + bit; ++mask) out.push_back(values[mask | bit] - values[mask]);
  }
}

/// Averages what is added to the coalitions of some other players.
class Average {
 public:
  Average(Index index, int others) {
    double coalitions_of_size = 1;
    for (int size = 0; size <= others; ++size) {
      weight_[static_cast<std::size_t>(size)] =
          index == Index::shapley ? 1 / ((others + 1) * coalitions_of_size) : std::ldexp(1.0, -others);
      coalitions_of_size = coalitions_of_size * (others - size) / (size + 1);
    }
  }

  double operator()(std::span<const double> added) const {
    BySize sums{};
    for (std::size_t mask = 0; mask < added.size(); ++mask) {
      sums[static_cast<std::size_t>(std::popcount(mask))] += added[mask];
    }
    double mean = 0;
    for (std::size_t size = 0; size < sums.size(); ++size) mean += weight_[size] * sums[size];
    return mean;
  }

 private:
  BySize weight_{};
};

}  // namespace

std::vector<double> player_values(const CompleteGame& game, Index index) {
  const int players = game.players();
  const Average average(index, players - 1);
  std::vector<double> result, added;
  result.reserve(static_cast<std::size_t>(game.cases() * players));
  for (std::int64_t row = 0; row < game.cases(); ++row) {
    for (int player = 0; player < players; ++player) {
      differentiate(game.row(row), player, added);
      result.push_back(average(added));
    }
  }
  return result;
}

std::vector<double> interactions(const CompleteGame& game, Index index) {
  const int players = game.players();
  const auto width = static_cast<std::size_t>(players);
  const Average of_player(index, players - 1);
  const Average of_pair(index, players > 1 ? players - 2 : 0);
  std::vector<double> result(static_cast<std::size_t>(game.cases()) * width * width);
  std::vector<double> added, jointly;
  for (std::int64_t row = 0; row < game.cases(); ++row) {
    double* const square = result.data() + static_cast<std::size_t>(row) * width * width;
    for (std::size_t i = 0; i < width; ++i) {
      differentiate(game.row(row), static_cast<int>(i), added);
      square[i * width + i] = of_player(added);
      for (std::size_t j = i + 1; j < width; ++j) {
        // Player j is bit j - 1 of a mask that has closed up over bit i.
        differentiate(added, static_cast<int>(j) - 1, jointly);
        square[i * width + j] = square[j * width + i] = of_pair(jointly);
      }
    }
  }
  return result;
}

}  // namespace moetrace::coalition
