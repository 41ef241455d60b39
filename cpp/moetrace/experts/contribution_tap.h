#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moetrace/experts/fused_experts.h"
#include "moetrace/hooks/forward.h"
#include "moetrace/hooks/site.h"

namespace moetrace::experts {

/// What experts contribute to their sum (equation 5, but for the block's scale) at the chosen tokens of a
/// user's forward.
///
/// kPairs: [hidden, index, weights, the experts' weights where their layout is known], gives what the module
/// must be called with where the compiled routines can't compute them; nothing where they can, or where no
/// row is asked for. kLeave: [hidden, index, weights, output] and the pairs' outputs or the experts' weights
/// behind them. Of all experts it gives (batch, chosen, k, width), of one expert its contribution (batch,
/// chosen, width), zero where a token isn't routed to it, and a column (batch, chosen, 1) of ones where one
/// is and zeros elsewhere. Float32 or wider. Failure (kContribution) where the contributions of a row don't
/// sum to the experts' output.
class ContributionTap final : public hooks::Site {
 public:
  /// `expert`: -1 for all.
  ContributionTap(std::string name, std::shared_ptr<const hooks::Forward> forward, std::int64_t expert);
  /// How the weights lie, where they are given behind the output.
  void set_layout(const Layout& layout) { layout_ = layout; }

 private:
  std::vector<Tensor> apply(hooks::Step step, const std::vector<Tensor>& given) override;
  std::vector<std::int64_t> asked(const Tensor& index) const;
  static bool serves(const Tensor& index, std::int64_t experts);
  std::vector<Tensor> of_one(const Tensor& contribution, const Routed& call,
                             const hooks::RowIndex& rows) const;

  std::shared_ptr<const hooks::Forward> forward_;
  std::int64_t expert_;
  Layout layout_{};
};

}  // namespace moetrace::experts
