#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moetrace/experts/fused_experts.h"

namespace moetrace::experts {

/// Largest absolute number of each row of (n, …).
std::vector<double> row_sizes(const Tensor& value);

/// The first row whose difference exceeds its own size (or that in `sizes`, where it is larger) times the
/// tolerance of its dtype; -1 where all agree. Rows that are not finite in the model itself say nothing.
std::int64_t first_difference(const Tensor& found, const Tensor& expected, const std::vector<double>& sizes);

/// What an experts module is given to compute the (row, expert) pairs of some rows one by one: hidden states,
/// index and weights of (rows * k) lines.
std::vector<Tensor> pairs_of(const Routed& call, const hooks::RowIndex& rows);

/// Throws a Failure (kContribution) unless contributions (n, k, width) sum to the experts' output (n, width).
/// `rows`: their numbers, for the message.
void check_sums(const std::string& site, const Tensor& contribution, const Tensor& output,
                const std::vector<std::int64_t>& rows);

}  // namespace moetrace::experts
