#include "moetrace/experts/contribution_tap.h"

#include <algorithm>
#include <utility>

#include "moetrace/experts/pairs.h"

namespace moetrace::experts {

namespace {

Tensor zeros(const std::vector<std::int64_t>& shape, const Tensor& like) {
  Tensor found = ops::empty(shape, like.scalar_type());
  torch::stable::zero_(found);
  return ops::to_device(found, like);
}

}  // namespace

ContributionTap::ContributionTap(std::string name, std::shared_ptr<const hooks::Forward> forward,
                                 std::int64_t expert)
    : Site(std::move(name)), forward_(std::move(forward)), expert_(expert) {}

std::vector<Tensor> ContributionTap::apply(hooks::Step step, const std::vector<Tensor>& given) {
  const Routed call{given.at(0), given.at(1), given.at(2)};
  forward_->by_token(call.index, name());  // a row for each token, or a failure that says what was found
  const hooks::RowIndex rows(asked(call.index));
  if (step == hooks::Step::kPairs) {
    const bool known = given.size() == 3 + layout_.weights() && serves(call.index, given.back().size(0));
    return known || rows.empty() ? std::vector<Tensor>() : pairs_of(call, rows);
  }

  count();
  const std::int64_t top_k = call.index.size(1), width = call.hidden.size(1);
  const Tensor output = ops::reshape(given.at(3), {-1, width});
  if (rows.empty()) {
    const ScalarType wide =
        output.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const Tensor nothing = zeros({0, top_k, width}, ops::to(output, wide));
    if (expert_ >= 0) return of_one(nothing, call, rows);
    return {ops::reshape(nothing, {forward_->batch(), 0, top_k, width})};
  }
  const auto chosen = [&](const Tensor& value) { return ops::index_select(value, rows.on(value)); };
  Tensor contribution = output;
  if (given.size() == 5) {  // by the module, pair by pair
    const ScalarType wide =
        output.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    contribution = ops::to(ops::reshape(given[4], {rows.size(), top_k, width}), wide);
  } else {
    contribution = contributions(FusedExperts::of(layout_, &given.at(4)),
                                 {chosen(call.hidden), chosen(call.index), chosen(call.weight)});
  }
  check_sums(name(), contribution, chosen(output), rows.rows());
  if (expert_ >= 0) return of_one(contribution, call, rows);
  return {ops::reshape(contribution, {forward_->batch(), forward_->chosen(), top_k, width})};
}

/// Rows whose contributions are needed: the chosen ones, of one expert those that are routed to it.
std::vector<std::int64_t> ContributionTap::asked(const Tensor& index) const {
  std::vector<std::int64_t> found;
  if (expert_ < 0) return forward_->rows().rows();
  const auto routed = ops::to_vector<std::int64_t>(index, ScalarType::Long);
  const auto top_k = static_cast<std::size_t>(index.size(1));
  for (const std::int64_t row : forward_->rows().rows()) {
    const auto first = routed.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row) * top_k);
    if (std::find(first, first + static_cast<std::ptrdiff_t>(top_k), expert_) !=
        first + static_cast<std::ptrdiff_t>(top_k)) {
      found.push_back(row);
    }
  }
  return found;
}

/// Whether every token is routed to experts that have weights.
bool ContributionTap::serves(const Tensor& index, std::int64_t experts) {
  const auto routed = ops::to_vector<std::int64_t>(index, ScalarType::Long);
  return std::all_of(routed.begin(), routed.end(),
                     [&](std::int64_t expert) { return expert >= 0 && expert < experts; });
}

std::vector<Tensor> ContributionTap::of_one(const Tensor& contribution, const Routed& call,
                                            const hooks::RowIndex& rows) const {
  const auto& chosen = forward_->rows().rows();
  const std::int64_t width = contribution.size(2);
  const auto count = static_cast<std::int64_t>(chosen.size());
  Tensor value = zeros({count, width}, contribution);
  std::vector<float> routed(chosen.size(), 0.0F);
  if (!rows.empty()) {
    // The expert's share of each row is what its places hold, all others left out.
    const auto experts =
        ops::to_vector<std::int64_t>(ops::index_select(call.index, rows.on(call.index)), ScalarType::Long);
    std::vector<float> own(experts.size());
    for (std::size_t at = 0; at < experts.size(); ++at) own[at] = experts[at] == expert_ ? 1.0F : 0.0F;
    const std::vector<std::int64_t> shape{rows.size(), contribution.size(1), 1};
    const Tensor places = ops::to_device(
        ops::to(ops::from_vector(own, shape, ScalarType::Float), contribution.scalar_type()), contribution);
    std::vector<std::int64_t> places_of_rows;  // both in the order in which tokens were asked for
    for (std::size_t at = 0; at < chosen.size() && places_of_rows.size() < rows.rows().size(); ++at) {
      if (chosen[at] != rows.rows()[places_of_rows.size()]) continue;
      places_of_rows.push_back(static_cast<std::int64_t>(at));
      routed[at] = 1.0F;
    }
    const hooks::RowIndex into(std::move(places_of_rows));
    value = ops::index_copy(value, into.on(value), ops::sum(ops::mul(contribution, places), 1));
  }
  const Tensor mask = ops::to_device(ops::from_vector(routed, {count}, ScalarType::Float), contribution);
  return {ops::reshape(value, {forward_->batch(), forward_->chosen(), width}),
          ops::reshape(mask, {forward_->batch(), forward_->chosen(), 1})};
}

}  // namespace moetrace::experts
