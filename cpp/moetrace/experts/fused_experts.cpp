#include "moetrace/experts/fused_experts.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace moetrace::experts {

namespace {

using Pairs = std::vector<std::int64_t>;

void check(const FusedExperts& experts, const Routed& routed) {
  const Tensor &up = experts.up, &down = experts.down;
  const Layout& layout = experts.layout;
  const bool whole = up.dim() == 3 && down.dim() == 3 && up.size(0) == down.size(0) &&
                     up.size(layout.transposed ? 2 : 1) == (layout.gate.gated ? 2 : 1) * experts.inner() &&
                     up.size(layout.transposed ? 1 : 2) == experts.width();
  if (!whole) {
    throw std::invalid_argument(
        "fused experts need gate_up (experts, 2 x inner, width) and down (experts, width, inner)");
  }
  if (layout.biased && (!experts.up_bias || !experts.down_bias)) {
    throw std::invalid_argument("fused experts with biases need both");
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

/// One product of an expert: (n, out) of (n, in).
Tensor product(const Tensor& input, const Tensor& weights, const std::optional<Tensor>& biases,
               std::int64_t expert, bool transposed) {
  const Tensor own = torch::stable::select(weights, 0, expert);
  std::optional<Tensor> bias;
  if (biases) bias = torch::stable::select(*biases, 0, expert);
  return ops::linear(input, transposed ? ops::transpose(own) : own, bias);
}

/// Calls visit(pairs, output) for each expert that is used; output: not yet weighted, (pairs, width).
template <typename Visit>
void for_each_expert(const FusedExperts& experts, const Routed& routed, Visit visit) {
  check(experts, routed);
  const std::int64_t top_k = routed.index.size(1);
  const bool transposed = experts.layout.transposed;
  const auto groups = group_by_expert(routed.index, experts.experts());
  for (std::size_t expert = 0; expert < groups.size(); ++expert) {
    const Pairs& pairs = groups[expert];
    if (pairs.empty()) continue;
    Pairs rows(pairs);
    for (std::int64_t& row : rows) row /= top_k;
    const Tensor input = ops::index_select(routed.hidden, hooks::RowIndex(std::move(rows)).on(routed.hidden));
    const auto own = static_cast<std::int64_t>(expert);
    const Tensor both = product(input, experts.up, experts.up_bias, own, transposed);
    const Tensor value = experts.layout.gate(both);
    visit(pairs, product(value, experts.down, experts.down_bias, own, transposed));
  }
}

ScalarType kept_type(const Tensor& hidden) {
  return hidden.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
constexpr ScalarType kScalar = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

/// Adds weight x line of each pair to its row of `sum`, and writes it where the row is wanted. Lines are of
/// type T, sums and contributions of the wider type Sum.
template <typename T, typename Sum>
class Scatter {
 public:
  Scatter(const Routed& routed, const Pairs& wanted, Tensor& sum, std::optional<Tensor>& contribution)
      : top_k_(routed.index.size(1)),
        width_(routed.hidden.size(1)),
        weight_(ops::to_vector<Sum>(routed.weight, kScalar<Sum>)),
        place_(static_cast<std::size_t>(routed.hidden.size(0)), -1),
        sum_(static_cast<Sum*>(sum.mutable_data_ptr())),
        contribution_(contribution ? static_cast<Sum*>(contribution->mutable_data_ptr()) : nullptr) {
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
    const Sum weight = weight_[static_cast<std::size_t>(pair)];
    Sum* into = sum_ + row * width_;
    for (std::int64_t i = 0; i < width_; ++i) into[i] += weight * static_cast<Sum>(line[i]);
    if (own < 0) return;
    Sum* kept = contribution_ + (own * top_k_ + pair % top_k_) * width_;
    for (std::int64_t i = 0; i < width_; ++i) kept[i] = weight * static_cast<Sum>(line[i]);
  }

  std::int64_t top_k_, width_;
  std::vector<Sum> weight_;
  Pairs place_;  ///< of a row among the wanted ones
  Sum* sum_;
  Sum* contribution_;
};

template <typename T, typename Sum>
FusedOutput scatter(const FusedExperts& experts, const Routed& routed, const Pairs& wanted) {
  const std::int64_t rows = routed.hidden.size(0), width = routed.hidden.size(1),
                     top_k = routed.index.size(1);
  FusedOutput found{ops::empty({rows, width}, kScalar<Sum>), std::nullopt};
  torch::stable::zero_(found.output);
  if (!wanted.empty()) {
    found.contribution = ops::empty({static_cast<std::int64_t>(wanted.size()), top_k, width}, kScalar<Sum>);
  }
  for_each_expert(experts, routed, Scatter<T, Sum>(routed, wanted, found.output, found.contribution));
  found.output = ops::to(found.output, routed.hidden.scalar_type());
  return found;
}

}  // namespace

FusedExperts FusedExperts::of(const Layout& layout, const Tensor* weights) {
  FusedExperts found{weights[0], weights[1], std::nullopt, std::nullopt, layout};
  if (layout.biased) {
    found.up_bias = weights[2];
    found.down_bias = weights[3];
  }
  return found;
}

Tensor contributions(const FusedExperts& experts, const Routed& routed) {
  const ScalarType kept = kept_type(routed.hidden);
  const Tensor weight = ops::reshape(routed.weight, {-1, 1});
  std::vector<Tensor> parts;
  Pairs order;
  for_each_expert(experts, routed, [&](const Pairs& pairs, const Tensor& output) {
    const Tensor own = ops::index_select(weight, hooks::RowIndex(pairs).on(weight));
    parts.push_back(ops::mul(ops::to(output, kept), ops::to(own, kept)));
    order.insert(order.end(), pairs.begin(), pairs.end());
  });
  // Expert by expert as computed; then in the order of the pairs.
  Pairs back(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    back[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  }
  const Tensor all = ops::cat(parts, 0);
  const Tensor sorted = ops::index_select(all, hooks::RowIndex(std::move(back)).on(all));
  return ops::reshape(sorted, {routed.index.size(0), routed.index.size(1), experts.width()});
}

FusedOutput fused_output(const FusedExperts& experts, const Routed& routed, const Pairs& wanted) {
  check(experts, routed);
  switch (routed.hidden.scalar_type()) {
    case ScalarType::Double:
      return scatter<double, double>(experts, routed, wanted);
    case ScalarType::BFloat16:
      return scatter<torch::headeronly::BFloat16, float>(experts, routed, wanted);
    case ScalarType::Half:
      return scatter<torch::headeronly::Half, float>(experts, routed, wanted);
    default:
      return scatter<float, float>(experts, routed, wanted);
  }
}

}  // namespace moetrace::experts
