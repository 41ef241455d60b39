#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/coalition/mask.h"

namespace moetrace::coalition {

/// Orders in which players join, one a row. Owns nothing.
class Permutations {
 public:
  /// Throws std::invalid_argument unless there is a row, and each holds every player of 0 ... players - 1
  /// once, 1 <= players <= kMaxPlayers.
  Permutations(std::span<const std::int64_t> cells, int players);

  int players() const noexcept { return players_; }
  std::size_t size() const noexcept { return cells_.size() / static_cast<std::size_t>(players_); }
  std::span<const std::int64_t> row(std::size_t index) const noexcept {
    const auto width = static_cast<std::size_t>(players_);
    return cells_.subspan(index * width, width);
  }

  /// Throws std::invalid_argument unless rows 1, 3, 5, ... are the rows before them, reversed.
  void check_antithetic() const;

 private:
  std::span<const std::int64_t> cells_;
  int players_;
};

/// `count` permutations of 0 ... players - 1, row after row; every order equally likely.
///
/// Row i is a function of (players, seed, stream, i) alone, so a longer sample begins with a shorter one's
/// rows. An antithetic sample holds each drawn order and then its reverse: row 2i is row i of the plain one.
/// Throws std::invalid_argument unless 1 <= players <= kMaxPlayers, count >= 1 (even, when antithetic) and
/// count x players <= 2^32.
std::vector<std::int64_t> sample_permutations(int players, std::int64_t count, std::uint64_t seed,
                                              std::uint64_t stream, bool antithetic);

/// The distinct non-empty coalitions that form while players join in these orders, ascending.
std::vector<Mask> prefix_coalitions(const Permutations& permutations);

}  // namespace moetrace::coalition
