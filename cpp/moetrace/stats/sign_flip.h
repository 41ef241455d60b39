#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moetrace/stats/matrix.h"
#include "moetrace/stats/parallel.h"

namespace moetrace::stats {

struct SignFlipOptions {
  std::size_t flips = 10000;
  std::uint64_t seed = 0;
  std::size_t threads = 1;
};

/// Numbers of flips whose statistic is at least as extreme as the observed one, for each column.
struct SignFlipCounts {
  std::size_t flips = 0;          // what was run: 2^n when exact
  bool exact = false;             // every assignment of signs was visited, the observed one among them
  std::vector<std::int64_t> own;  // |statistic of the column|
  std::vector<std::int64_t> single_step;  // maximum over all columns (Westfall and Young 1993, 2.3.1)
  std::vector<std::int64_t> step_down;  // maximum over the columns not more extreme (their alg. 2.8), not yet
                                        // made monotone
  std::vector<std::int64_t> order;      // columns from the most extreme to the least
};

/// Flips the signs of the rows of x (cases, or sums of clusters) at random, the same for all columns; the
/// statistic is the absolute value of a column's sum. Scale columns beforehand to weigh them differently.
///
/// Rounding breaks no tie: sums that differ by up to 1e-12 of the column's sum of absolute values count as
/// equal. Exact where 2^rows <= flips.
SignFlipCounts sign_flip(const MatrixView& x, const SignFlipOptions& options,
                         const Interrupt& interrupt = {});

/// Sign (-1 or 1) of row i in flip b, as used above, for b = first ... first + count - 1: [count][rows].
std::vector<std::int8_t> flip_signs(std::size_t rows, std::uint64_t seed, std::size_t first,
                                    std::size_t count);

}  // namespace moetrace::stats
