#include "moetrace/coalition/sampled.h"

#include <cmath>
#include <limits>

namespace moetrace::coalition {

namespace {

/// Column of the coalition that stands after each step of each permutation.
std::vector<std::size_t> columns_of(const Permutations& permutations, const ListedGame& game) {
  std::vector<std::size_t> columns;
  columns.reserve(permutations.size() * static_cast<std::size_t>(permutations.players()));
  for (std::size_t index = 0; index < permutations.size(); ++index) {
    Mask joined = 0;
    for (const std::int64_t player : permutations.row(index)) {
      columns.push_back(game.column(joined |= Mask{1} << player));
    }
  }
  return columns;
}

/// Mean and squared deviations of each player's draws, updated draw by draw (Welford 1962).
class Moments {
 public:
  explicit Moments(std::size_t players) : mean_(players), squares_(players) {}

  void add(std::span<const double> draw) {
    ++count_;
    for (std::size_t player = 0; player < draw.size(); ++player) {
      const double before = draw[player] - mean_[player];
      mean_[player] += before / count_;
      squares_[player] += before * (draw[player] - mean_[player]);
    }
  }

  void append_to(SampledShapley& result) const {
    for (std::size_t player = 0; player < mean_.size(); ++player) {
      result.means.push_back(mean_[player]);
      result.standard_errors.push_back(count_ > 1 ? std::sqrt(squares_[player] / (count_ * (count_ - 1)))
                                                  : std::numeric_limits<double>::quiet_NaN());
    }
  }

 private:
  double count_ = 0;
  std::vector<double> mean_, squares_;
};

}  // namespace

SampledShapley sampled_shapley(const Permutations& permutations, const ListedGame& game, bool antithetic) {
  if (antithetic) permutations.check_antithetic();
  const std::vector<std::size_t> columns = columns_of(permutations, game);
  const auto players = static_cast<std::size_t>(permutations.players());
  const std::size_t rows_a_draw = antithetic ? 2 : 1;
  SampledShapley result;
  std::vector<double> draw(players);
  for (std::int64_t index = 0; index < game.cases(); ++index) {
    const auto values = game.row(index);
    Moments moments(players);
    for (std::size_t first = 0; first < permutations.size(); first += rows_a_draw) {
      draw.assign(players, 0.0);
      for (std::size_t row = first; row < first + rows_a_draw; ++row) {
        double before = game.empty_value(index);
        for (std::size_t step = 0; step < players; ++step) {
          const double after = values[columns[row * players + step]];
          draw[static_cast<std::size_t>(permutations.row(row)[step])] +=
              (after - before) / static_cast<double>(rows_a_draw);
          before = after;
        }
      }
      moments.add(draw);
    }
    moments.append_to(result);
  }
  return result;
}

}  // namespace moetrace::coalition
