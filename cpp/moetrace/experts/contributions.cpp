#include "moetrace/experts/contributions.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace moetrace::experts {

namespace {

void check(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
           const at::Tensor& weights) {
  if (experts.gate_up.dim() != 3 || experts.down.dim() != 3 ||
      experts.gate_up.size(0) != experts.down.size(0) ||
      experts.gate_up.size(1) != 2 * experts.down.size(2)) {
    throw std::invalid_argument(
        "gated experts need gate_up (experts, 2 x inner, width) and down (experts, width, inner)");
  }
  if (hidden.dim() != 2 || index.dim() != 2 || index.sizes() != weights.sizes() ||
      hidden.size(0) != index.size(0)) {
    throw std::invalid_argument("contributions need hidden (n, width), index (n, k) and weights (n, k)");
  }
}

/// For each expert the flat numbers of the pairs that are routed to it.
std::vector<std::vector<std::int64_t>> group_by_expert(const at::Tensor& index, std::int64_t experts) {
  const at::Tensor flat = index.to(at::kCPU, at::kLong).contiguous();
  const std::int64_t* expert = flat.data_ptr<std::int64_t>();
  std::vector<std::vector<std::int64_t>> groups(static_cast<std::size_t>(experts));
  for (std::int64_t pair = 0; pair < flat.numel(); ++pair) {
    if (expert[pair] < 0 || expert[pair] >= experts) {
      throw std::invalid_argument("a row is routed to expert " + std::to_string(expert[pair]) + " of " +
                                  std::to_string(experts));
    }
    groups[static_cast<std::size_t>(expert[pair])].push_back(pair);
  }
  return groups;
}

at::Tensor to_tensor(const std::vector<std::int64_t>& values, const at::Device& device) {
  at::Tensor result = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), result.data_ptr<std::int64_t>());
  return result.to(device);
}

}  // namespace

at::Tensor gated_contributions(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
                               const at::Tensor& weights) {
  check(experts, hidden, index, weights);
  const std::int64_t top_k = index.size(1);
  const auto kept = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor result = at::empty({hidden.size(0) * top_k, experts.down.size(1)}, hidden.options().dtype(kept));
  const at::Tensor flat_weights = weights.reshape({-1, 1});
  const auto groups = group_by_expert(index, experts.down.size(0));
  for (std::size_t expert = 0; expert < groups.size(); ++expert) {
    if (groups[expert].empty()) continue;
    const at::Tensor pairs = to_tensor(groups[expert], hidden.device());
    const at::Tensor rows = hidden.index_select(0, pairs.floor_divide(top_k));
    const auto e = static_cast<std::int64_t>(expert);
    const auto halves = at::linear(rows, experts.gate_up.select(0, e)).chunk(2, -1);
    const at::Tensor output = at::linear(at::silu(halves[0]).mul(halves[1]), experts.down.select(0, e));
    result.index_copy_(0, pairs, output.mul(flat_weights.index_select(0, pairs)).to(kept));
  }
  return result.reshape({hidden.size(0), top_k, -1});
}

}  // namespace moetrace::experts
