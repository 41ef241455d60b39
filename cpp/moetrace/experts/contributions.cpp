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

/// Calls visit(pairs, rows, output) for each expert that is used; output: weighted, (pairs, width), in
/// `kept`.
template <typename Visit>
void for_each_expert(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
                     const at::Tensor& weights, at::ScalarType kept, const Visit& visit) {
  check(experts, hidden, index, weights);
  const at::Tensor flat_weights = weights.reshape({-1, 1});
  const auto groups = group_by_expert(index, experts.down.size(0));
  for (std::size_t expert = 0; expert < groups.size(); ++expert) {
    if (groups[expert].empty()) continue;
    const at::Tensor pairs = to_tensor(groups[expert], hidden.device());
    const at::Tensor rows = pairs.floor_divide(index.size(1));
    const auto e = static_cast<std::int64_t>(expert);
    const auto halves = at::linear(hidden.index_select(0, rows), experts.gate_up.select(0, e)).chunk(2, -1);
    const at::Tensor output = at::linear(at::silu(halves[0]).mul_(halves[1]), experts.down.select(0, e));
    visit(groups[expert], pairs, rows, output.mul_(flat_weights.index_select(0, pairs)).to(kept));
  }
}

at::ScalarType kept_type(const at::Tensor& hidden) {
  return hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

using Pairs = std::vector<std::int64_t>;

}  // namespace

at::Tensor gated_contributions(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
                               const at::Tensor& weights) {
  const auto kept = kept_type(hidden);
  at::Tensor result = at::empty({index.numel(), experts.down.size(1)}, hidden.options().dtype(kept));
  for_each_expert(experts, hidden, index, weights, kept,
                  [&](const Pairs&, const at::Tensor& pairs, const at::Tensor&, const at::Tensor& output) {
                    result.index_copy_(0, pairs, output);
                  });
  return result.reshape({hidden.size(0), index.size(1), -1});
}

GatedOutput gated_output(const GatedExperts& experts, const at::Tensor& hidden, const at::Tensor& index,
                         const at::Tensor& weights, const at::Tensor& wanted) {
  const auto kept = kept_type(hidden);
  const auto options = hidden.options().dtype(kept);
  const std::int64_t width = experts.down.size(1), top_k = index.size(1);
  at::Tensor sum = at::zeros({hidden.size(0), width}, options);
  at::Tensor contribution = at::empty({wanted.numel() * top_k, width}, options);

  const at::Tensor listed = wanted.to(at::kCPU, at::kLong).contiguous();
  Pairs place(static_cast<std::size_t>(hidden.size(0)), -1);  // of a row among the wanted ones
  for (std::int64_t i = 0; i < listed.numel(); ++i) {
    place.at(static_cast<std::size_t>(listed.data_ptr<std::int64_t>()[i])) = i;
  }
  for_each_expert(
      experts, hidden, index, weights, kept,
      [&](const Pairs& group, const at::Tensor&, const at::Tensor& rows, const at::Tensor& output) {
        sum.index_add_(0, rows, output);
        Pairs from, to;
        for (std::size_t i = 0; i < group.size(); ++i) {
          const std::int64_t own = place[static_cast<std::size_t>(group[i] / top_k)];
          if (own < 0) continue;
          from.push_back(static_cast<std::int64_t>(i));
          to.push_back(own * top_k + group[i] % top_k);
        }
        if (from.empty()) return;
        const auto device = hidden.device();
        contribution.index_copy_(0, to_tensor(to, device), output.index_select(0, to_tensor(from, device)));
      });
  return {sum.to(hidden.scalar_type()), contribution.reshape({wanted.numel(), top_k, width})};
}

}  // namespace moetrace::experts
