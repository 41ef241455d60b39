#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "moetrace/coalition/mask.h"

namespace moetrace::coalition {

/// Values of coalitions: a row for each case, a column for each coalition, row after row. Owns nothing.
struct Table {
  std::span<const double> cells;
  std::int64_t cases;
  std::int64_t columns;

  std::span<const double> row(std::int64_t index) const noexcept {
    const auto width = static_cast<std::size_t>(columns);
    return cells.subspan(static_cast<std::size_t>(index) * width, width);
  }
};

/// A game of which every coalition has a value: column = mask, column 0 the empty coalition.
class CompleteGame {
 public:
  /// Throws std::invalid_argument unless the columns are 2^k, 1 <= k <= kMaxCompletePlayers, and every value
  /// is finite.
  explicit CompleteGame(Table table);

  int players() const noexcept { return players_; }
  std::int64_t cases() const noexcept { return table_.cases; }
  std::span<const double> row(std::int64_t index) const noexcept { return table_.row(index); }

 private:
  Table table_;
  int players_;
};

/// A game of which some coalitions have a value; column i is coalitions[i], in any order.
class ListedGame {
 public:
  /// Throws std::invalid_argument for a repeated coalition or one with a player of kMaxPlayers or more, for
  /// no coalition but the empty one, for a count that isn't that of the columns, and for a value that isn't
  /// finite.
  ListedGame(Table table, std::span<const Mask> coalitions);

  std::int64_t cases() const noexcept { return table_.cases; }
  std::span<const Mask> coalitions() const noexcept { return coalitions_; }

  /// All players that occur in a coalition.
  Mask grand() const noexcept { return grand_; }

  /// Where a coalition stands. Throws std::invalid_argument, naming it, when it isn't listed.
  std::size_t column(Mask coalition) const;

  std::span<const double> row(std::int64_t index) const noexcept { return table_.row(index); }

  /// Of the empty coalition: 0 where it isn't listed.
  double empty_value(std::int64_t index) const noexcept;

 private:
  Table table_;
  std::span<const Mask> coalitions_;
  std::vector<std::pair<Mask, std::size_t>> sorted_;
  Mask grand_ = 0;
};

}  // namespace moetrace::coalition
