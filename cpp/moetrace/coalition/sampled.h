#pragma once

#include <vector>

#include "moetrace/coalition/game.h"
#include "moetrace/coalition/permutations.h"

namespace moetrace::coalition {

/// Estimates of Shapley values, cases x players, row after row.
struct SampledShapley {
  std::vector<double> means;
  std::vector<double> standard_errors;  ///< of the means; NaN where there is a single draw
};

/// What each player adds on joining, averaged over permutations: unbiased for the Shapley value, and in every
/// sample the means of a case sum to v(all) - v(none).
///
/// A draw is a permutation, or the mean of an antithetic pair of them; the standard error is
/// sqrt(sum (x - mean)^2 / (m (m - 1))) over m draws. Throws std::invalid_argument when a coalition that
/// forms has no value, or rows are no pairs.
SampledShapley sampled_shapley(const Permutations& permutations, const ListedGame& game, bool antithetic);

}  // namespace moetrace::coalition
