#include "moetrace/experts/router_tap.h"

#include <utility>

namespace moetrace::experts {

RouterTap::RouterTap(std::string name, std::int64_t rows, std::vector<std::int64_t> clean,
                     std::vector<std::int64_t> noised)
    : Site(std::move(name)), rows_(rows), clean_(std::move(clean)), noised_(std::move(noised)) {}

void RouterTap::reset() {
  Site::reset();
  clean_logits_.clear();
  noised_logits_.clear();
}

std::vector<Tensor> RouterTap::apply(hooks::Step /*step*/, const std::vector<Tensor>& given) {
  count();
  clean_logits_.clear();
  noised_logits_.clear();
  const Tensor& value = given.at(0);
  const std::int64_t experts = value.size(value.dim() - 1);
  if (value.numel() != rows_ * experts) return {};
  const Tensor flat = ops::reshape(value, {rows_, experts});
  const auto lines = [&](const hooks::RowIndex& which) {
    return ops::to_vector<double>(ops::index_select(flat, which.on(flat)), ScalarType::Double);
  };
  clean_logits_ = lines(clean_);
  noised_logits_ = lines(noised_);
  return {};
}

}  // namespace moetrace::experts
