#include "moetrace/pass/outcome.h"

#include <limits>
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
      direct_linear_(patched_) {}

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
  for (const auto& [layer, call] : pass.routed()) {
    const auto scale = scales.find(layer);
    take_routing(pass, layer, scale == scales.end() ? 1.0 : scale->second);
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
        const double value = line[1 + draws_ + fork];
        const double direct = readings.direct.empty() ? kNone : readings.direct[given];
        const double linear = readings.direct_linear.empty() ? kNone : readings.direct_linear[given];
        if (runs[run].column >= 0) {
          const auto cell = static_cast<std::size_t>((index * patches_ + runs[run].column) * draws_ + draw);
          patched_[cell] = value;
          direct_[cell] = direct;
          direct_linear_[cell] = linear;
        } else {
          const auto& call = *pass.routed().at(runs[run].patch.layer);
          const auto& routing = call.routing().at(static_cast<std::size_t>(item));
          take_sweep(runs[run], item, routing, value, direct, linear);
        }
      }
    }
  }
}

void Outcome::take_routing(const Pass& pass, std::int64_t layer, double scale) {
  const auto& call = *pass.routed().at(layer);
  const std::int64_t items = cases_ * draws_, count = pass.facts(layer).expert_count;
  const auto slots = static_cast<std::int64_t>(call.routing().at(0).slots());
  auto [place, fresh] = layers_.try_emplace(layer);
  LayerOutcome& found = place->second;
  if (!fresh) return;  // another part of the same runs has seen the same
  found = empty_layer(items, slots, count);
  for (std::int64_t item = 0; item < items; ++item) {
    const experts::RoutingUnion& own = call.routing()[static_cast<std::size_t>(item)];
    for (std::int64_t slot = 0; slot < slots; ++slot) {
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
      found.delta_norm[cell] = scale * call.norms()[static_cast<std::size_t>(item)][at];
    }
  }
  const auto router = pass.routers().find(layer);
  if (router == pass.routers().end()) return;
  found.clean_logit = router->second->clean();
  found.noised_logit = router->second->noised();
}

void Outcome::take_sweep(const Run& run, std::int64_t item, const experts::RoutingUnion& routing,
                         double difference, double direct, double direct_linear) {
  LayerOutcome& found = layers_.at(run.patch.layer);
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
