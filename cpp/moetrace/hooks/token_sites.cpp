#include "moetrace/hooks/token_sites.h"

#include <utility>

namespace moetrace::hooks {

Tap::Tap(std::string name, std::shared_ptr<const Forward> forward)
    : Site(std::move(name)), forward_(std::move(forward)) {}

void Tap::reset() {
  Site::reset();
  kept_.clear();
}

std::vector<std::int64_t> Tap::steps() const {
  std::vector<std::int64_t> found;
  for (const auto& own : kept_) found.push_back(own.at(0).size(1));
  return found;
}

std::vector<Tensor> Tap::apply(Step step, const std::vector<Tensor>& given) {
  if (step == Step::kRead) return read();
  if (number_ == forward_->number()) {
    throw Failure(Trouble::kShape,
                  name() + ": it ran twice in one forward, so that a token has no single value there");
  }
  if (sequence_ != forward_->sequence()) kept_.clear();
  number_ = forward_->number();
  sequence_ = forward_->sequence();
  count();
  std::vector<Tensor> kept, passed;
  if (step == Step::kKeep) kept = given;
  for (const Tensor& value : given) {
    if (step == Step::kKeep) break;
    kept.push_back(forward_->chosen_of(value, name()));
    if (forward_->all())
      passed.push_back(ops::reshape(torch::stable::clone(kept.back()), ops::shape_of(value)));
  }
  kept_.push_back(std::move(kept));
  return passed;
}

std::vector<Tensor> Tap::read() const {
  if (kept_.empty() || kept_.size() == 1) return kept_.empty() ? std::vector<Tensor>() : kept_.front();
  std::vector<Tensor> found;
  for (std::size_t at = 0; at < kept_.front().size(); ++at) {
    std::vector<Tensor> parts;
    for (const auto& own : kept_) parts.push_back(own.at(at));
    found.push_back(ops::cat(parts, 1));
  }
  return found;
}

TokenPatch::TokenPatch(std::string name, std::shared_ptr<const Forward> forward)
    : Site(std::move(name)), forward_(std::move(forward)) {}

std::vector<Tensor> TokenPatch::apply(Step step, const std::vector<Tensor>& given) {
  std::vector<Tensor> found;
  if (step == Step::kValue) {
    if (forward_->chosen() == 0) return found;
    for (const Tensor& value : given) found.push_back(forward_->chosen_of(value, name()));
    return found;
  }
  const std::size_t count_of = given.size() / 2;
  for (std::size_t at = 0; at < count_of; ++at) {
    found.push_back(forward_->with_chosen(given.at(at), given.at(count_of + at), name()));
  }
  count();
  return found;
}

}  // namespace moetrace::hooks
