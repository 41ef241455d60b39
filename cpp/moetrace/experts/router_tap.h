#pragma once

#include <vector>

#include "moetrace/hooks/rows.h"
#include "moetrace/hooks/site.h"

namespace moetrace::experts {

/// Keeps what a router says of chosen rows: one logit for each expert. Nothing is kept of a call that doesn't
/// have a line for every row, as where a router is given more or fewer rows than the experts.
class RouterTap final : public hooks::Site {
 public:
  RouterTap(std::string name, std::int64_t rows, std::vector<std::int64_t> clean,
            std::vector<std::int64_t> noised);

  /// By item, row-major (items, experts); empty where the router wasn't understood.
  const std::vector<double>& clean() const noexcept { return clean_logits_; }
  const std::vector<double>& noised() const noexcept { return noised_logits_; }
  void reset() override;

 private:
  std::vector<Tensor> apply(hooks::Step step, const std::vector<Tensor>& given) override;
  std::int64_t rows_;
  hooks::RowIndex clean_, noised_;
  std::vector<double> clean_logits_, noised_logits_;
};

}  // namespace moetrace::experts
