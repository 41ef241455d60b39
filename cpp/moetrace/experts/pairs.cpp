#include "moetrace/experts/pairs.h"

#include <algorithm>
#include <cmath>

#include "moetrace/hooks/failure.h"

namespace moetrace::experts {

namespace {

/// How far sums of contributions, and the fused routine, may lie from the module: in units of a row's size.
double tolerance(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return 1e-6;
    case ScalarType::Float:
      return 2e-4;
    case ScalarType::Half:
      return 2e-2;
    default:
      return 8e-2;
  }
}

}  // namespace

std::vector<double> row_sizes(const Tensor& value) {
  const Tensor flat =
      ops::reshape(value, {value.size(0), value.numel() / std::max<std::int64_t>(1, value.size(0))});
  return ops::to_vector<double>(torch::stable::amax(ops::abs(flat), 1), ScalarType::Double);
}

std::int64_t first_difference(const Tensor& found, const Tensor& expected, const std::vector<double>& sizes) {
  const auto differences = row_sizes(ops::sub(found, ops::to(expected, found.scalar_type())));
  const auto own = row_sizes(expected);
  const double allowed = tolerance(expected.scalar_type());
  for (std::size_t row = 0; row < own.size(); ++row) {
    if (!std::isfinite(own[row])) continue;
    const double size = std::max({own[row], sizes.empty() ? 0.0 : sizes[row], 1e-30});
    if (!(differences[row] <= allowed * size)) return static_cast<std::int64_t>(row);
  }
  return -1;
}

std::vector<Tensor> pairs_of(const Routed& call, const hooks::RowIndex& wanted) {
  const std::int64_t top_k = call.index.size(1);
  std::vector<std::int64_t> repeated;
  for (std::int64_t row = 0; row < wanted.size(); ++row) repeated.insert(repeated.end(), top_k, row);
  const hooks::RowIndex lines(std::move(repeated));
  const auto chosen = [&](const Tensor& value) { return ops::index_select(value, wanted.on(value)); };
  const Tensor hidden = chosen(call.hidden);
  const Tensor one = ops::reshape(chosen(call.index), {-1, 1}),
               weight = ops::reshape(chosen(call.weight), {-1, 1});
  // A second slot of weight 0: some experts squeeze a single one away.
  Tensor nothing = torch::stable::empty_like(weight);
  torch::stable::zero_(nothing);
  return {ops::index_select(hidden, lines.on(hidden)), ops::cat({one, one}, 1),
          ops::cat({weight, nothing}, 1)};
}

void check_sums(const std::string& site, const Tensor& contribution, const Tensor& output,
                const std::vector<std::int64_t>& rows) {
  const std::int64_t row = first_difference(ops::sum(contribution, 1), output, row_sizes(contribution));
  if (row < 0) return;
  throw hooks::Failure(hooks::Trouble::kContribution,
                       site + ": the experts' contributions don't sum to the experts' output in row " +
                           std::to_string(rows[static_cast<std::size_t>(row)]) +
                           "; this layout of experts isn't understood, so no patch vector would be right");
}

}  // namespace moetrace::experts
