#include "moetrace/pass/outcome.h"

#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>

namespace moetrace::pass {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

LayerOutcome empty_layer(std::int64_t items, std::int64_t slots, std::int64_t experts) {
  LayerOutcome found;
  found.slots = slots;
  found.experts = experts;
  const auto wide = static_cast<std::size_t>(items * experts);
  found.routed.assign(static_cast<std::size_t>(items * slots), 0);
  found.valid.assign(static_cast<std::size_t>(items * slots), 0);
  for (auto* flags : {&found.clean_active, &found.noised_active, &found.patched_active})
    flags->assign(wide, 0);
  for (auto* values : {&found.clean_weight, &found.noised_weight, &found.delta_norm})
    values->assign(wide, 0.0);
  for (auto* values : {&found.patched, &found.direct, &found.direct_linear}) values->assign(wide, kNone);
  return found;
}

}  // namespace

Outcome::Outcome(const Job& job, std::int64_t cases)
    : cases_(cases),
      draws_(job.draws),
      patches_(static_cast<std::int64_t>(job.patches.size())),
      clean_(static_cast<std::size_t>(cases), kNone),
      noised_(static_cast<std::size_t>(cases * job.draws), kNone),
      patched_(static_cast<std::size_t>(cases * patches_ * job.draws), kNone),
      direct_(patched_),
      direct_linear_(patched_),
      present_(static_cast<std::size_t>(cases * patches_), 1) {
  std::set<std::pair<std::int64_t, std::int64_t>> swept;
  for (const Sweep& sweep : job.sweeps) {
    if (!swept.emplace(sweep.layer, sweep.place).second) {
      throw std::invalid_argument("two sweeps of layer " + std::to_string(sweep.layer) + " at one place");
    }
  }
}

void Outcome::take(const Pass& pass, const Readings& readings, const std::map<std::int64_t, double>& scales) {
  const auto& runs = pass.runs();
  const auto& differences = readings.differences;
  const std::int64_t forks = static_cast<std::int64_t>(runs.size()) * draws_, rows = 1 + draws_ + forks;
  if (pass.layout().cases() != cases_ || static_cast<std::int64_t>(differences.size()) != cases_ * rows) {
    throw std::invalid_argument("an outcome takes " + std::to_string(cases_) + " x " + std::to_string(rows) +
                                " logit differences of this pass, not " + std::to_string(differences.size()));
  }
  for (const auto* values : {&readings.direct, &readings.direct_linear}) {
    if (!values->empty() && static_cast<std::int64_t>(values->size()) != cases_ * forks) {
      throw std::invalid_argument("an outcome takes " + std::to_string(cases_) + " x " +
                                  std::to_string(forks) + " direct effects of this pass, not " +
                                  std::to_string(values->size()));
    }
  }
  for (const auto& [layer, places] : pass.places()) {
    const auto scale = scales.find(layer);
    for (const std::int64_t place : places) {
      take_routing(pass, layer, place, scale == scales.end() ? 1.0 : scale->second);
    }
  }
  for (std::int64_t index = 0; index < cases_; ++index) {
    const double* line = differences.data() + index * rows;
    clean_[static_cast<std::size_t>(index)] = line[0];
    for (std::int64_t draw = 0; draw < draws_; ++draw) {
      const std::int64_t item = index * draws_ + draw;
      noised_[static_cast<std::size_t>(item)] = line[1 + draw];
      for (std::size_t run = 0; run < runs.size(); ++run) {
        const std::int64_t fork = static_cast<std::int64_t>(run) * draws_ + draw;
        const auto given = static_cast<std::size_t>(index * forks + fork);
        const Patch& patch = runs[run].patch;
        const bool here = pass.cases()[static_cast<std::size_t>(index)].shape.has(patch.place);
        const double value = here ? line[1 + draws_ + fork] : kNone;
        const double direct = !here || readings.direct.empty() ? kNone : readings.direct[given];
        const double linear = !here || readings.direct_linear.empty() ? kNone : readings.direct_linear[given];
        if (runs[run].column >= 0) {
          const auto cell = static_cast<std::size_t>((index * patches_ + runs[run].column) * draws_ + draw);
          patched_[cell] = value;
          direct_[cell] = direct;
          direct_linear_[cell] = linear;
          present_[static_cast<std::size_t>(index * patches_ + runs[run].column)] = here;
        } else if (here) {
          const auto group = pass.group(patch.layer, index, draw, patch.place);
          const auto& routing = pass.routed().at(patch.layer)->routing().at(group);
          take_sweep(runs[run], item, routing, value, direct, linear);
        }
      }
    }
  }
}

void Outcome::take_routing(const Pass& pass, std::int64_t layer, std::int64_t place, double scale) {
  auto [own_place, fresh] = layers_.try_emplace({layer, place});
  LayerOutcome& found = own_place->second;
  if (!fresh) return;  // another part of the same runs has seen the same
  const std::int64_t items = cases_ * draws_, count = pass.facts(layer).expert_count;
  const auto routed = pass.routed().find(layer);
  if (routed == pass.routed().end()) {  // no case of the batch has any of the layer's places
    found = empty_layer(items, 0, count);
    return;
  }
  const auto& call = *routed->second;
  std::int64_t slots = 0;
  for (std::int64_t item = 0; item < items; ++item) {
    const auto group = pass.group(layer, item / draws_, item % draws_, place);
    slots = std::max(slots, static_cast<std::int64_t>(call.routing().at(group).slots()));
  }
  found = empty_layer(items, slots, count);
  for (std::int64_t item = 0; item < items; ++item) {
    const auto group = pass.group(layer, item / draws_, item % draws_, place);
    const experts::RoutingUnion& own = call.routing()[group];
    for (std::int64_t slot = 0; slot < static_cast<std::int64_t>(own.slots()); ++slot) {
      const auto at = static_cast<std::size_t>(slot);
      found.routed[static_cast<std::size_t>(item * slots + slot)] = own.expert[at];
      found.valid[static_cast<std::size_t>(item * slots + slot)] = own.valid[at];
      if (!own.valid[at]) continue;
      if (own.expert[at] >= count) {
        throw std::invalid_argument("layer " + std::to_string(layer) + " routes to expert " +
                                    std::to_string(own.expert[at]) + " of " + std::to_string(count));
      }
      const auto cell = static_cast<std::size_t>(item * count + own.expert[at]);
      found.clean_active[cell] = own.clean_place[at] >= 0;
      found.noised_active[cell] = own.noised_place[at] >= 0;
      found.clean_weight[cell] = own.clean_weight[at];
      found.noised_weight[cell] = own.noised_weight[at];
      found.delta_norm[cell] = scale * call.norms()[group][at];
    }
  }
  take_logits(pass, layer, place, found);
}

void Outcome::take_logits(const Pass& pass, std::int64_t layer, std::int64_t place,
                          LayerOutcome& found) const {
  const auto router = pass.routers().find(layer);
  if (router == pass.routers().end() || router->second->clean().empty()) return;
  const auto& call = *pass.routed().at(layer);
  const auto& clean = router->second->clean();
  const auto& noised = router->second->noised();
  const auto width = static_cast<std::int64_t>(clean.size()) / call.tokens();
  for (std::int64_t item = 0; item < cases_ * draws_; ++item) {
    const auto& items = call.items(pass.group(layer, item / draws_, item % draws_, place));
    for (std::int64_t expert = 0; expert < width; ++expert) {
      const auto at = items.empty() ? 0 : static_cast<std::size_t>(items.back() * width + expert);
      found.clean_logit.push_back(items.empty() ? kNone : clean[at]);
      found.noised_logit.push_back(items.empty() ? kNone : noised[at]);
    }
  }
}

void Outcome::take_sweep(const Run& run, std::int64_t item, const experts::RoutingUnion& routing,
                         double difference, double direct, double direct_linear) {
  LayerOutcome& found = layers_.at({run.patch.layer, run.patch.place});
  const auto top_k = static_cast<std::int64_t>(routing.top_k());
  const auto& patch = run.patch.experts;
  if (patch.slot >= top_k) return;
  const auto slot = static_cast<std::size_t>(patch.slot + (patch.noised_slot ? top_k : 0));
  if (!routing.valid[slot]) return;
  const auto cell = static_cast<std::size_t>(item * found.experts + routing.expert[slot]);
  found.patched_active[cell] = 1;
  found.patched[cell] = difference;
  found.direct[cell] = direct;
  found.direct_linear[cell] = direct_linear;
}

}  // namespace moetrace::pass
