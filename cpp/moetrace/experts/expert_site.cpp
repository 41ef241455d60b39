#include "moetrace/experts/expert_site.h"

#include <ATen/ops/_unique2.h>

#include <memory>
#include <stdexcept>
#include <utility>

namespace moetrace::experts {

ExpertSite::ExpertSite(std::string name, std::int64_t rows, at::Tensor clean, at::Tensor noised,
                       std::optional<at::Tensor> destination, std::vector<Recipe> recipes)
    : Site(std::move(name)),
      rows_(rows),
      noised_(std::move(noised)),
      destination_(std::move(destination)),
      recipes_(std::move(recipes)) {
  const auto recipes_given = static_cast<std::int64_t>(recipes_.size());
  if (clean.dim() != 1 || clean.sizes() != noised_.sizes() ||
      (destination_ && destination_->sizes() != at::IntArrayRef({clean.size(0), recipes_given}))) {
    throw std::invalid_argument(this->name() + ": clean and noised (items), destination (items, recipes)");
  }
  const auto [wanted, inverse, counts] = at::_unique2(at::cat({clean, noised_}), true, true, false);
  wanted_ = wanted;
  clean_item_ = inverse.slice(0, 0, clean.size(0));
  noised_item_ = inverse.slice(0, clean.size(0));
}

void ExpertSite::route(Routed routed) { routed_ = std::move(routed); }

const Players& ExpertSite::players() const {
  if (!players_.expert.defined()) throw std::runtime_error(name() + " knows no routing: it never fired");
  return players_;
}

const at::Tensor& ExpertSite::patched() const {
  if (!patched_.defined()) throw std::runtime_error(name() + " knows no patched rows: it never fired");
  return patched_;
}

void ExpertSite::reset() {
  Site::reset();
  patched_ = at::Tensor();
  routed_ = Routed();
  players_ = Players();
}

at::Tensor ExpertSite::factors(const at::TensorOptions& options) const {
  const at::Tensor expert = players_.expert.to(at::kCPU).contiguous();
  const at::Tensor valid = players_.valid.to(at::kCPU).contiguous();
  const at::Tensor weight = players_.clean_weight.to(at::kCPU).contiguous();
  const at::Tensor norm = players_.norm.to(at::kCPU).contiguous();
  const std::int64_t items = expert.size(0);
  const auto places = static_cast<std::size_t>(expert.size(1));
  at::Tensor result =
      at::zeros({items, static_cast<std::int64_t>(recipes_.size()), expert.size(1)}, at::kFloat);
  float* cell = result.data_ptr<float>();
  for (std::int64_t item = 0; item < items; ++item) {
    const std::size_t offset = static_cast<std::size_t>(item) * places;
    const PlayersView view{{expert.data_ptr<std::int64_t>() + offset, places},
                           {valid.data_ptr<bool>() + offset, places},
                           {weight.data_ptr<float>() + offset, places},
                           {norm.data_ptr<float>() + offset, places}};
    for (const Recipe& recipe : recipes_) {
      const auto line = coefficients(recipe, view);
      cell = std::copy(line.begin(), line.end(), cell);
    }
  }
  return result.to(options);
}

at::Tensor ExpertSite::apply(const at::Tensor& value) {
  if (!routed_.index.defined()) throw std::runtime_error(name() + ": routing must be told before it fires");
  const at::Tensor flat = hooks::as_rows(value, rows_, name());
  const auto device = value.device();
  const at::Tensor sums = routed_.contribution.sum(1);
  const at::Tensor outputs = flat.index_select(0, wanted_.to(device)).to(sums.scalar_type());
  sum_error_ = sums.sub(outputs).abs().max().item<double>();
  output_size_ = outputs.abs().max().item<double>();

  const auto take = [&](const at::Tensor& item) {
    const at::Tensor which = item.to(device);
    return Routed{routed_.index.index_select(0, which), routed_.weight.index_select(0, which),
                  routed_.contribution.index_select(0, which)};
  };
  players_ = match(take(clean_item_), take(noised_item_));
  if (recipes_.empty()) return value;
  const at::Tensor added = factors(players_.delta.options()).bmm(players_.delta);  // (items, recipes, width)
  const at::Tensor base = flat.index_select(0, noised_.to(device)).unsqueeze(1).to(added.scalar_type());
  patched_ = base.add(added).to(value.scalar_type()).reshape({-1, flat.size(1)});
  if (!destination_) return value;
  return flat.index_copy(0, destination_->reshape({-1}).to(device), patched_).reshape(value.sizes());
}

}  // namespace moetrace::experts
