#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/stats/matrix.h"

namespace moetrace::stats {

/// Where candidates that tie with the selected one are put.
enum class Ties { ahead, midway, behind };

/// One entry for each case; rank 0 where the case can't be ranked.
struct SelectedRanks {
  std::vector<double> rank;              // 1 is best
  std::vector<std::int64_t> candidates;  // active ones, the selected among them
  std::vector<std::int64_t> tied;        // other candidates with the selected one's value
};

/// Rank of the selected column among the active columns of each case, largest value first. A case is ranked
/// when the selected column (-1: none) is active and at least one other is. active is [cases][candidates].
SelectedRanks rank_selected(const MatrixView& values, std::span<const std::uint8_t> active,
                            std::span<const std::int64_t> selected, Ties ties);

}  // namespace moetrace::stats
