#include "moetrace/experts/players.h"

#include <stdexcept>

namespace moetrace::experts {

Players match(const Routed& clean, const Routed& noised) {
  if (clean.index.sizes() != noised.index.sizes() ||
      clean.contribution.sizes() != noised.contribution.sizes()) {
    throw std::invalid_argument("clean and noised rows must come in pairs");
  }
  // (n, k clean, k noised): which noised place holds the same expert
  const at::Tensor same = clean.index.unsqueeze(2).eq(noised.index.unsqueeze(1));
  const at::Tensor weights = same.to(clean.contribution.scalar_type());
  const at::Tensor in_noised = weights.bmm(noised.contribution);
  const at::Tensor only_noised = same.any(1).logical_not();

  Players players;
  players.expert = at::cat({clean.index, noised.index}, 1);
  players.valid = at::cat({clean.index.ge(0), only_noised}, 1);
  players.noised_active = at::cat({same.any(2), only_noised}, 1);
  const at::Tensor clean_weight = clean.weight.to(at::kFloat), noised_weight = noised.weight.to(at::kFloat);
  players.clean_weight =
      at::cat({clean_weight, at::zeros(noised_weight.sizes(), noised_weight.options())}, 1);
  const at::Tensor carried = same.to(at::kFloat).bmm(noised_weight.unsqueeze(2)).squeeze(2);
  players.noised_weight = at::cat({carried, noised_weight.mul(only_noised)}, 1);
  const at::Tensor lost = noised.contribution.neg().mul(only_noised.unsqueeze(2));
  players.delta = at::cat({clean.contribution.sub(in_noised), lost}, 1);
  players.norm = players.delta.norm(2, -1).to(at::kFloat);
  return players;
}

}  // namespace moetrace::experts
