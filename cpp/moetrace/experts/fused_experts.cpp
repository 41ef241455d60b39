#include "moetrace/experts/fused_experts.h"

#include <stdexcept>
#include <string>

namespace moetrace::experts {

namespace {

using Pairs = std::vector<std::int64_t>;

void check(const FusedExperts& experts, const Routed& routed) {
  const Tensor &up = experts.gate_up, &down = experts.down;
  if (up.dim() != 3 || down.dim() != 3 || up.size(0) != down.size(0) || up.size(1) != 2 * down.size(2)) {
    throw std::invalid_argument(
        "fused experts need gate_up (experts, 2 x inner, width) and down (experts, width, inner)");
  }
  const Tensor &hidden = routed.hidden, &index = routed.index, &weight = routed.weight;
  if (hidden.dim() != 2 || index.dim() != 2 || weight.dim() != 2 || hidden.size(0) != index.size(0) ||
      ops::shape_of(index) != ops::shape_of(weight)) {
    throw std::invalid_argument("contributions need hidden (n, width), index (n, k) and weights (n, k)");
  }
}

/// For each expert the flat numbers of the pairs that are routed to it.
std::vector<Pairs> group_by_expert(const Tensor& index, std::int64_t experts) {
  const auto expert = ops::to_vector<std::int64_t>(index, ScalarType::Long);
  std::vector<Pairs> groups(static_cast<std::size_t>(experts));
  for (std::size_t pair = 0; pair < expert.size(); ++pair) {
    if (expert[pair] < 0 || expert[pair] >= experts) {
      throw std::invalid_argument("a row is routed to expert " + std::to_string(expert[pair]) + " of " +
                                  std::to_string(experts));
    }
    groups[static_cast<std::size_t>(expert[pair])].push_back(static_cast<std::int64_t>(pair));
  }
  return groups;
}

/// Calls visit(pairs, output) for each expert that is used; output: not yet weighted, (pairs, width).
template <typename Visit>
void for_each_expert(const FusedExperts& experts, const Routed& routed, Visit visit) {
  check(experts, routed);
  const std::int64_t top_k = routed.index.size(1), inner = experts.down.size(2);
  const auto groups = group_by_expert(routed.index, experts.experts());
  for (std::size_t expert = 0; expert < groups.size(); ++expert) {
    const Pairs& pairs = groups[expert];
    if (pairs.empty()) continue;
    Pairs rows(pairs);
    for (std::int64_t& row : rows) row /= top_k;
    const Tensor input = ops::index_select(routed.hidden, hooks::RowIndex(std::move(rows)).on(routed.hidden));
    const auto own = static_cast<std::int64_t>(expert);
    const Tensor both = ops::linear(input, torch::stable::select(experts.gate_up, 0, own));
    const Tensor gate = ops::silu(ops::narrow(both, 1, 0, inner));
    const Tensor value = ops::mul(gate, ops::narrow(both, 1, inner, inner));
    visit(pairs, ops::linear(value, torch::stable::select(experts.down, 0, own)));
  }
}

ScalarType kept_type(const Tensor& hidden) {
  return hidden.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

/// Adds weight x line of each pair to its row of `sum`, and writes it where the row is wanted.
template <typename T>
class Scatter {
 public:
  Scatter(const Routed& routed, const Pairs& wanted, Tensor& sum, std::optional<Tensor>& contribution)
      : top_k_(routed.index.size(1)),
        width_(routed.hidden.size(1)),
        weight_(ops::to_vector<T>(routed.weight, routed.hidden.scalar_type())),
        place_(static_cast<std::size_t>(routed.hidden.size(0)), -1),
        sum_(static_cast<T*>(sum.mutable_data_ptr())),
        contribution_(contribution ? static_cast<T*>(contribution->mutable_data_ptr()) : nullptr) {
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      place_.at(static_cast<std::size_t>(wanted[i])) = static_cast<std::int64_t>(i);
    }
  }

  void operator()(const Pairs& pairs, const Tensor& output) {
    const Tensor lines = torch::stable::contiguous(output);
    const T* first = static_cast<const T*>(lines.const_data_ptr());
    // An expert has a row once, so that no two pairs write to the same place.
    const auto count = static_cast<std::int64_t>(pairs.size());
    torch::stable::parallel_for(0, count, kGrain / width_ + 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t at = begin; at < end; ++at) {
        add(pairs[static_cast<std::size_t>(at)], first + at * width_);
      }
    });
  }

 private:
  static constexpr std::int64_t kGrain = 1 << 15;  // numbers that are worth a thread

  void add(std::int64_t pair, const T* line) {
    const std::int64_t row = pair / top_k_, own = place_[static_cast<std::size_t>(row)];
    const T weight = weight_[static_cast<std::size_t>(pair)];
    T* into = sum_ + row * width_;
    for (std::int64_t i = 0; i < width_; ++i) into[i] += weight * line[i];
    if (own < 0) return;
    T* kept = contribution_ + (own * top_k_ + pair % top_k_) * width_;
    for (std::int64_t i = 0; i < width_; ++i) kept[i] = weight * line[i];
  }

  std::int64_t top_k_, width_;
  std::vector<T> weight_;
  Pairs place_;  ///< of a row among the wanted ones
  T* sum_;
  T* contribution_;
};

template <typename T>
FusedOutput scatter(const FusedExperts& experts, const Routed& routed, const Pairs& wanted) {
  const ScalarType dtype = routed.hidden.scalar_type();
  const std::int64_t rows = routed.hidden.size(0), width = routed.hidden.size(1),
                     top_k = routed.index.size(1);
  FusedOutput found{ops::empty({rows, width}, dtype), std::nullopt};
  torch::stable::zero_(found.output);
  if (!wanted.empty()) {
    found.contribution = ops::empty({static_cast<std::int64_t>(wanted.size()), top_k, width}, dtype);
  }
  for_each_expert(experts, routed, Scatter<T>(routed, wanted, found.output, found.contribution));
  return found;
}

}  // namespace

Tensor contributions(const FusedExperts& experts, const Routed& routed) {
  const ScalarType kept = kept_type(routed.hidden);
  const Tensor weight = ops::reshape(routed.weight, {-1, 1});
  std::vector<Tensor> parts;
  Pairs order;
  for_each_expert(experts, routed, [&](const Pairs& pairs, const Tensor& output) {
    const Tensor own = ops::index_select(weight, hooks::RowIndex(pairs).on(weight));
    parts.push_back(ops::to(ops::mul(output, ops::to(own, output.scalar_type())), kept));
    order.insert(order.end(), pairs.begin(), pairs.end());
  });
  // Expert by expert as computed; then in the order of the pairs.
  Pairs back(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    back[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  }
  const Tensor all = ops::cat(parts, 0);
  const Tensor sorted = ops::index_select(all, hooks::RowIndex(std::move(back)).on(all));
  return ops::reshape(sorted, {routed.index.size(0), routed.index.size(1), experts.down.size(1)});
}

FusedOutput fused_output(const FusedExperts& experts, const Routed& routed, const Pairs& wanted) {
  check(experts, routed);
  return routed.hidden.scalar_type() == ScalarType::Double ? scatter<double>(experts, routed, wanted)
                                                           : scatter<float>(experts, routed, wanted);
}

}  // namespace moetrace::experts
