#include "moetrace/coalition/game.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

namespace moetrace::coalition {

namespace {

void check_shape(const Table& table) {
  const bool fits =
      table.cases >= 0 && table.columns >= 0 &&
      static_cast<std::size_t>(table.cases) * static_cast<std::size_t>(table.columns) == table.cells.size();
  if (!fits) {
    throw std::invalid_argument("found " + std::to_string(table.cells.size()) + " values; expected " +
                                std::to_string(table.cases) + " cases x " + std::to_string(table.columns) +
                                " coalitions");
  }
}

template <class MaskOfColumn>
void check_finite(const Table& table, MaskOfColumn mask_of) {
  for (std::int64_t index = 0; index < table.cases; ++index) {
    const auto row = table.row(index);
    const auto bad =
        std::find_if_not(row.begin(), row.end(), [](double value) { return std::isfinite(value); });
    if (bad == row.end()) continue;
    const auto column = static_cast<std::size_t>(bad - row.begin());
    throw std::invalid_argument("case " + std::to_string(index) + " has the value " + std::to_string(*bad) +
                                " for coalition " + describe(mask_of(column)) + " (column " +
                                std::to_string(column) + "); expected finite values: leave that case out");
  }
}

}  // namespace

CompleteGame::CompleteGame(Table table) : table_(table), players_(0) {
  check_shape(table);
  const auto columns = static_cast<std::uint64_t>(table.columns);
  if (columns < 2 || !std::has_single_bit(columns)) {
    throw std::invalid_argument("found " + std::to_string(columns) +
                                " columns; expected 2^k, one for each coalition of k players and the empty "
                                "one first");
  }
  players_ = std::countr_zero(columns);
  if (players_ > kMaxCompletePlayers) {
    throw std::invalid_argument("found 2^" + std::to_string(players_) + " columns; expected at most 2^" +
                                std::to_string(kMaxCompletePlayers) +
                                ": sample permutations of a larger set of players");
  }
  check_finite(table, [](std::size_t column) { return Mask{column}; });
}

ListedGame::ListedGame(Table table, std::span<const Mask> coalitions)
    : table_(table), coalitions_(coalitions) {
  check_shape(table);
  if (coalitions.size() != static_cast<std::size_t>(table.columns)) {
    throw std::invalid_argument("found " + std::to_string(table.columns) + " columns of values for " +
                                std::to_string(coalitions.size()) +
                                " coalitions; expected one column for each");
  }
  sorted_.reserve(coalitions.size());
  for (std::size_t column = 0; column < coalitions.size(); ++column) {
    sorted_.emplace_back(coalitions[column], column);
    grand_ |= coalitions[column];
  }
  std::sort(sorted_.begin(), sorted_.end());
  if (grand_ == 0)
    throw std::invalid_argument("found no players; expected at least one coalition that isn't empty");
  if (grand_ >> kMaxPlayers != 0) {
    throw std::invalid_argument("a coalition has player 63; expected players 0 to " +
                                std::to_string(kMaxPlayers - 1));
  }
  const auto twice = std::adjacent_find(sorted_.begin(), sorted_.end(),
                                        [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != sorted_.end()) {
    throw std::invalid_argument("coalition " + describe(twice->first) + " is listed twice, in columns " +
                                std::to_string(twice->second) + " and " +
                                std::to_string(std::next(twice)->second) + "; expected each once");
  }
  check_finite(table, [coalitions](std::size_t column) { return coalitions[column]; });
}

std::size_t ListedGame::column(Mask coalition) const {
  const auto found = std::lower_bound(sorted_.begin(), sorted_.end(), std::pair{coalition, std::size_t{0}});
  if (found == sorted_.end() || found->first != coalition) {
    throw std::invalid_argument("coalition " + describe(coalition) +
                                " has no value; expected it among the coalitions that are listed");
  }
  return found->second;
}

double ListedGame::empty_value(std::int64_t index) const noexcept {
  const auto& [coalition, column] = sorted_.front();
  return coalition == 0 ? row(index)[column] : 0.0;
}

}  // namespace moetrace::coalition
