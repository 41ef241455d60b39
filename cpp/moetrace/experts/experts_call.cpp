#include "moetrace/experts/experts_call.h"

#include <algorithm>
#include <numeric>

#include "moetrace/experts/pairs.h"

namespace moetrace::experts {

namespace {

bool is_computed(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

}  // namespace

ExpertsCall::ExpertsCall(std::string name, Rows rows, std::vector<ExpertPatch> patches,
                         std::int64_t fused_from, const Layout& layout)
    : Site(std::move(name)),
      rows_(std::move(rows)),
      expert_patches_(std::move(patches)),
      fused_from_(fused_from),
      layout_(layout) {
  const auto items = static_cast<std::int64_t>(rows_.clean.size());
  const bool fits = std::all_of(rows_.written.begin(), rows_.written.end(), [&](const Written& own) {
    return own.item >= 0 && own.item < items && own.patch >= 0 && own.group < rows_.groups.size() &&
           own.patch < static_cast<std::int64_t>(expert_patches_.size());
  });
  if (static_cast<std::int64_t>(rows_.noised.size()) != items || !fits) {
    throw std::invalid_argument(this->name() +
                                ": clean and noised (items), and of written rows the item, patch and group");
  }
  std::vector<std::int64_t> origin, written;
  for (const Written& own : rows_.written) {
    const auto item = static_cast<std::size_t>(own.item);
    origin.push_back(own.from_clean ? rows_.clean[item] : rows_.noised[item]);
    written.push_back(own.index * rows_.inside + own.row);
  }
  origin_ = hooks::RowIndex(std::move(origin));
  written_ = hooks::RowIndex(std::move(written));
  std::vector<std::int64_t> watched(rows_.clean);
  watched.insert(watched.end(), rows_.noised.begin(), rows_.noised.end());
  std::sort(watched.begin(), watched.end());
  watched.erase(std::unique(watched.begin(), watched.end()), watched.end());
  const auto place_of = [&](std::int64_t row) {
    return std::lower_bound(watched.begin(), watched.end(), row) - watched.begin();
  };
  for (const std::int64_t row : rows_.clean) clean_.push_back(place_of(row));
  for (const std::int64_t row : rows_.noised) noised_items_.push_back(place_of(row));
  watched_ = hooks::RowIndex(std::move(watched));

  std::vector<std::int64_t> kept, place;
  for (std::int64_t at = 0; at < rows_.cases; ++at) {
    for (std::int64_t row = 0; row < rows_.before; ++row) kept.push_back(at * rows_.inside + row);
  }
  for (std::size_t at = 0; at < rows_.sources.size(); ++at) {
    const std::int64_t index = static_cast<std::int64_t>(at) / rows_.inside;
    const std::int64_t row = static_cast<std::int64_t>(at) % rows_.inside;
    place.push_back(index * rows_.before + (row < rows_.before ? row : rows_.sources[at]));
  }
  kept_ = hooks::RowIndex(std::move(kept));
  place_ = hooks::RowIndex(std::move(place));
}

void ExpertsCall::reset() {
  Site::reset();
  skipped_ = false;
  left_.clear();
  fused_.reset();
  fused_index_ = fused_weight_ = watched_output_ = patched_output_ = added_ = std::nullopt;
  routing_.clear();
  norms_.clear();
  place_routing_.clear();
  place_norms_.clear();
}

std::vector<Tensor> ExpertsCall::apply(hooks::Step step, const std::vector<Tensor>& given) {
  if (step == hooks::Step::kEnter) return enter(given);
  if (step == hooks::Step::kPairs) {
    const Routed call{given.at(0), given.at(1), given.at(2)};
    const bool known =
        given.size() == 3 + layout_.weights() && serves(FusedExperts::of(layout_, &given[3]), call.index);
    return known ? std::vector<Tensor>() : pairs(call);
  }
  return leave(given);
}

std::vector<Tensor> ExpertsCall::enter(std::vector<Tensor> given) {
  skipped_ = false;
  left_.clear();
  fused_.reset();
  fused_index_ = fused_weight_ = std::nullopt;
  if (given.empty()) return {};  // a call that must be left alone
  const bool fewer = skip_new_rows(given);
  const bool computed = fused_from_ > 0 && compute_fused(given);
  if (fused_from_ > 0) given.resize(given.size() - layout_.weights());
  return fewer || computed ? given : std::vector<Tensor>();
}

bool ExpertsCall::skip_new_rows(std::vector<Tensor>& values) {
  if (rows_.inside == rows_.before) return false;
  const std::size_t count = values.size() - (fused_from_ > 0 ? layout_.weights() : 0);
  for (std::size_t at = 0; at < count; ++at) {
    if (values[at].size(0) != rows_.cases * rows_.inside) return false;
  }
  for (std::size_t at = 0; at < count; ++at) {
    values[at] = ops::index_select(values[at], kept_.on(values[at]));
  }
  return skipped_ = true;
}

bool ExpertsCall::compute_fused(std::vector<Tensor>& values) {
  const std::size_t count = values.size() - layout_.weights();
  const auto experts = FusedExperts::of(layout_, &values[count]);
  const Routed call{values[0], values[1], values[2]};
  const std::int64_t rows = call.hidden.size(0);
  const ScalarType dtype = call.hidden.scalar_type();
  bool fits = rows >= fused_from_ && is_computed(dtype);
  for (std::size_t at = 0; fits && at < values.size(); ++at) {
    fits =
        values[at].is_cpu() && (at < count ? values[at].size(0) == rows : values[at].scalar_type() == dtype);
  }
  if (!fits) return false;
  const auto index = ops::to_vector<std::int64_t>(call.index, ScalarType::Long);
  const auto [least, most] = std::minmax_element(index.begin(), index.end());
  if (*least < 0 || *most >= experts.experts()) return false;  // identity experts: the module knows them

  fused_ = fused_output(experts, call, in_call(watched_.rows()));
  ++fused_calls_;
  if (!watched_.empty()) {
    const hooks::RowIndex wanted(in_call(watched_.rows()));
    fused_index_ = ops::index_select(call.index, wanted.on(call.index));
    fused_weight_ = ops::index_select(call.weight, wanted.on(call.weight));
  }
  left_ = in_call(rows_.checked);
  const hooks::RowIndex left(left_);
  for (std::size_t at = 0; at < count; ++at) values[at] = ops::index_select(values[at], left.on(values[at]));
  return true;
}

std::vector<std::int64_t> ExpertsCall::in_call(const std::vector<std::int64_t>& rows) const {
  if (!skipped_) return rows;
  std::vector<std::int64_t> found;
  found.reserve(rows.size());
  for (const std::int64_t row : rows) found.push_back(place_.rows()[static_cast<std::size_t>(row)]);
  return found;
}

bool ExpertsCall::serves(const FusedExperts& experts, const Tensor& index) const {
  const hooks::RowIndex wanted(in_call(watched_.rows()));
  if (fused_) return true;
  const auto routed =
      ops::to_vector<std::int64_t>(ops::index_select(index, wanted.on(index)), ScalarType::Long);
  return std::all_of(routed.begin(), routed.end(),
                     [&](std::int64_t expert) { return expert >= 0 && expert < experts.experts(); });
}

std::vector<Tensor> ExpertsCall::pairs(const Routed& call) const {
  if (fused_ || watched_.empty()) return {};
  const hooks::RowIndex wanted(in_call(watched_.rows()));
  return pairs_of(call, wanted);
}

std::vector<Tensor> ExpertsCall::leave(const std::vector<Tensor>& given) {
  count();
  const Routed call{given.at(0), given.at(1), given.at(2)};
  const Tensor& output = given.at(3);
  if (fused_) check_fused(output);
  const Tensor whole = whole_output(output);
  const bool replaced = fused_ || skipped_;
  if (!patches()) {
    fused_.reset();
    return replaced ? std::vector<Tensor>{whole} : std::vector<Tensor>();
  }

  const hooks::RowIndex wanted(in_call(watched_.rows()));
  const Tensor index = fused_ ? *fused_index_ : ops::index_select(call.index, wanted.on(call.index));
  const Tensor weight = fused_ ? *fused_weight_ : ops::index_select(call.weight, wanted.on(call.weight));
  const std::int64_t top_k = index.size(1);
  const Tensor flat = hooks::as_rows(whole, rows_.cases * rows_.inside, name());
  Tensor contribution = output;
  if (fused_) {
    contribution = *fused_->contribution;
  } else if (given.size() == 5) {  // by the module, pair by pair
    const ScalarType wide =
        output.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    contribution = ops::to(ops::reshape(given[4], {watched_.size(), top_k, flat.size(1)}), wide);
  } else {
    const Tensor hidden = ops::index_select(call.hidden, wanted.on(call.hidden));
    contribution = contributions(FusedExperts::of(layout_, &given.at(4)), {hidden, index, weight});
  }
  fused_.reset();
  watched_output_ = ops::index_select(flat, watched_.on(flat));
  check_sums(name(), contribution, *watched_output_, watched_.rows());
  unite_routings(index, weight);
  const Tensor delta = patch_vectors(contribution);
  const auto squares =
      ops::to_vector<float>(ops::sqrt(ops::sum(ops::mul(delta, delta), 2)), ScalarType::Float);
  const auto slots = static_cast<std::size_t>(2 * top_k);
  norms_.clear();
  for (std::size_t item = 0; item < routing_.size(); ++item) {
    norms_.emplace_back(squares.begin() + static_cast<std::ptrdiff_t>(item * slots),
                        squares.begin() + static_cast<std::ptrdiff_t>((item + 1) * slots));
  }
  unite_places();
  if (written_.empty()) return replaced ? std::vector<Tensor>{whole} : std::vector<Tensor>();

  const Tensor added = gains(delta);
  const Tensor base = ops::to(ops::index_select(flat, origin_.on(flat)), added.scalar_type());
  patched_output_ = ops::to(ops::add(base, added), whole.scalar_type());
  added_ = added;
  if (!rows_.writes) return replaced ? std::vector<Tensor>{whole} : std::vector<Tensor>();
  return {ops::reshape(ops::index_copy(flat, written_.on(flat), *patched_output_), ops::shape_of(whole))};
}

void ExpertsCall::check_fused(const Tensor& output) const {
  const hooks::RowIndex left(left_);
  const Tensor mine = ops::index_select(fused_->output, left.on(fused_->output));
  if (ops::shape_of(output) != ops::shape_of(mine) || first_difference(mine, output, {}) >= 0) {
    throw hooks::Failure(hooks::Trouble::kNotFused,
                         name() + ": the fused routine gives other numbers than the module");
  }
}

Tensor ExpertsCall::whole_output(const Tensor& output) const {
  const Tensor& all = fused_ ? fused_->output : output;
  return skipped_ ? ops::index_select(all, place_.on(all)) : all;
}

void ExpertsCall::unite_routings(const Tensor& index, const Tensor& weight) {
  const auto experts = ops::to_vector<std::int64_t>(index, ScalarType::Long);
  const auto weights = ops::to_vector<float>(weight, ScalarType::Float);
  const auto top_k = static_cast<std::size_t>(index.size(1));
  const auto line = [&](const auto& values, std::int64_t row) {
    return std::span(values.data() + static_cast<std::size_t>(row) * top_k, top_k);
  };
  routing_.clear();
  for (std::size_t item = 0; item < clean_.size(); ++item) {
    const std::int64_t clean = clean_[item], noised = noised_items_[item];
    routing_.push_back(
        unite(line(experts, clean), line(weights, clean), line(experts, noised), line(weights, noised)));
  }
}

Tensor ExpertsCall::patch_vectors(const Tensor& contribution) const {
  const std::int64_t top_k = contribution.size(1), width = contribution.size(2);
  const std::int64_t zero = watched_.size() * top_k;  // a line of zeros behind all contributions
  const Tensor flat = ops::reshape(contribution, {zero, width});
  Tensor nothing = ops::narrow(flat, 0, 0, 1);
  nothing = torch::stable::empty_like(nothing);
  torch::stable::zero_(nothing);
  const Tensor lines = ops::cat({flat, nothing}, 0);
  std::vector<std::int64_t> clean, noised;
  for (std::size_t item = 0; item < routing_.size(); ++item) {
    const RoutingUnion& own = routing_[item];
    for (std::size_t slot = 0; slot < own.slots(); ++slot) {
      const std::int64_t in_clean = own.clean_place[slot], in_noised = own.noised_place[slot];
      clean.push_back(in_clean < 0 ? zero : clean_[item] * top_k + in_clean);
      noised.push_back(in_noised < 0 ? zero : noised_items_[item] * top_k + in_noised);
    }
  }
  const Tensor delta = ops::sub(ops::index_select(lines, hooks::RowIndex(std::move(clean)).on(lines)),
                                ops::index_select(lines, hooks::RowIndex(std::move(noised)).on(lines)));
  return ops::reshape(delta, {static_cast<std::int64_t>(routing_.size()), 2 * top_k, width});
}

void ExpertsCall::unite_places() {
  place_routing_.clear();
  place_norms_.clear();
  const std::size_t places = rows_.tokens.size();
  for (std::size_t group = 0; group < rows_.groups.size(); ++group) {
    const auto& items = rows_.groups[group];
    const auto tokens = static_cast<std::size_t>(rows_.tokens[group % places]);
    if (items.empty() || tokens == 1) {
      place_routing_.push_back(items.empty() ? RoutingUnion() : routing_[static_cast<std::size_t>(items[0])]);
      place_norms_.push_back(items.empty() ? std::vector<float>()
                                           : norms_[static_cast<std::size_t>(items[0])]);
      continue;
    }
    std::vector<const RoutingUnion*> rows;
    for (const std::int64_t item : items) rows.push_back(&routing_[static_cast<std::size_t>(item)]);
    std::size_t slots = rows[0]->top_k() * tokens;
    if (rows_.experts > 0) slots = std::min(slots, static_cast<std::size_t>(rows_.experts));
    place_routing_.push_back(together(rows, slots));
    const RoutingUnion& own = place_routing_.back();
    std::vector<float> norms(own.slots(), 0.0F);
    for (std::size_t slot = 0; slot < norms.size(); ++slot) {
      double squares = 0.0;
      for (std::size_t at = 0; own.valid[slot] && at < rows.size(); ++at) {
        for (std::size_t place = 0; place < rows[at]->slots(); ++place) {
          if (!rows[at]->valid[place] || rows[at]->expert[place] != own.expert[slot]) continue;
          const double norm = norms_[static_cast<std::size_t>(items[at])][place];
          squares += norm * norm;
        }
      }
      norms[slot] = static_cast<float>(std::sqrt(squares));
    }
    place_norms_.push_back(std::move(norms));
  }
}

/// A patch for one token: slots of a place with several tokens are other slots of each of them.
ExpertPatch ExpertsCall::resolved(const Written& own) const {
  const ExpertPatch& patch = expert_patches_[static_cast<std::size_t>(own.patch)];
  const bool by_slot = patch.chosen == Chosen::kSlot || patch.chosen == Chosen::kSubset;
  if (!by_slot || rows_.tokens[own.group % rows_.tokens.size()] == 1) return patch;
  const RoutingUnion& routing = place_routing_[own.group];
  const std::vector<float> ones(routing.slots(), 1.0F);
  const auto factors = slot_factors(patch, routing, ones);
  ExpertPatch found;
  found.chosen = Chosen::kExperts;
  for (std::size_t slot = 0; slot < factors.size(); ++slot) {
    if (factors[slot] != 0.0F) found.experts.push_back(routing.expert[slot]);
  }
  return found;
}

Tensor ExpertsCall::gains(const Tensor& delta) const {
  const std::size_t items = routing_.size(), slots = static_cast<std::size_t>(delta.size(1));
  std::vector<std::int64_t> place;  // of each written row, among those of its item
  std::vector<std::int64_t> count(items, 0);
  for (const Written& own : rows_.written) place.push_back(count[static_cast<std::size_t>(own.item)]++);
  const std::int64_t most = *std::max_element(count.begin(), count.end());
  std::vector<float> cells(items * static_cast<std::size_t>(most) * slots, 0.0F);
  std::vector<std::int64_t> lines;
  for (std::size_t at = 0; at < rows_.written.size(); ++at) {
    const Written& own = rows_.written[at];
    const auto item = static_cast<std::size_t>(own.item);
    lines.push_back(own.item * most + place[at]);
    auto factors = slot_factors(resolved(own), routing_[item], norms_[item]);
    if (own.from_clean) {
      for (float& factor : factors) factor = -factor;
    }
    std::copy(factors.begin(), factors.end(),
              cells.begin() + lines.back() * static_cast<std::int64_t>(slots));
  }
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(items), most, delta.size(1)};
  const Tensor factors =
      ops::to(ops::to_device(ops::from_vector(cells, shape, ScalarType::Float), delta), delta.scalar_type());
  const Tensor sums = ops::reshape(ops::bmm(factors, delta), {-1, delta.size(2)});  // (items * most, width)
  const bool every = static_cast<std::int64_t>(lines.size()) == sums.size(0);
  return every ? sums : ops::index_select(sums, hooks::RowIndex(std::move(lines)).on(sums));
}

}  // namespace moetrace::experts
