// A pass over a small model against plain forwards of one patch each, by plain loops.

#include <doctest/doctest.h>

#include <string>

#include "toy_model.h"

using namespace moetrace;
using namespace moetrace::pass;
using namespace moetrace::testing;
using tree::Join;

namespace {

constexpr std::int64_t kDraws = 2;

/// Prompts of different length, with the patch at the final token or before it.
std::vector<Case> cases_of(bool last) {
  std::vector<Case> found(2);
  found[0].tokens = {1, 4, 7, 2, 9};
  found[0].shape = {5, 1, 3, {{last ? 4 : 3}}};
  found[1].tokens = {3, 8, 5, 6};
  found[1].shape = {4, 0, 2, {{last ? 3 : 2}}};
  double phase = 0.0;
  for (Case& own : found) own.vectors = varied(kDraws * 2 * kWidth, phase += 1.0);
  return found;
}

Patch of_experts(std::int64_t layer, experts::Chosen chosen, std::vector<std::int64_t> named = {},
                 bool equal_norm = false) {
  Patch patch{layer, Patch::Kind::kExperts, {}};
  patch.experts.chosen = chosen;
  patch.experts.experts = std::move(named);
  patch.experts.equal_norm = equal_norm;
  return patch;
}

Job job() {
  using experts::Chosen;
  Job found;
  found.layers = kLayers;
  found.draws = kDraws;
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    found.patches.push_back({layer, Patch::Kind::kBlock, {}});
    found.patches.push_back(of_experts(layer, Chosen::kClean));
    found.patches.push_back(of_experts(layer, Chosen::kUnion));
    found.patches.push_back(of_experts(layer, Chosen::kExperts, {0, 3}));
    for (std::int64_t anchor = 0; anchor < kExperts; ++anchor) {
      for (const bool equal_norm : {false, true}) {
        found.patches.push_back(of_experts(layer, Chosen::kAnchor, {anchor}, equal_norm));
        found.patches.push_back(of_experts(layer, Chosen::kMatched, {anchor}, equal_norm));
      }
    }
  }
  found.patches.push_back({0, Patch::Kind::kNull, {}});
  found.sweeps = {{1, kTopK, true}, {2, kTopK, false}};
  return found;
}

Line minus(Line a, const Line& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

double norm(const Line& line) {
  double squares = 0;
  for (const double own : line) squares += own * own;
  return std::sqrt(squares);
}

/// One case and draw: clean and noised run, and any patched one.
struct Plain {
  const ToyModel& model;
  const Case& own;
  Numbers noise;
  PlainRun clean, noised;

  Plain(const ToyModel& toy, const Case& given, std::int64_t draw)
      : model(toy),
        own(given),
        noise(line(given.vectors, draw, 2 * kWidth)),
        clean(toy, given.tokens, 0, {}),
        noised(toy, given.tokens, given.shape.subject_start, noise) {}

  std::size_t position() const { return static_cast<std::size_t>(own.shape.places[0][0]); }
  const Chosen& routed(const PlainRun& run, std::int64_t layer) const {
    return run.routed[static_cast<std::size_t>(layer)][position()];
  }
  const Line& block(const PlainRun& run, std::int64_t layer) const {
    return run.block[static_cast<std::size_t>(layer)][position()];
  }
  /// Equation 6.
  Line delta(std::int64_t layer, std::int64_t expert) const {
    const auto at = static_cast<std::size_t>(layer), which = static_cast<std::size_t>(expert);
    return minus(clean.shares[at][position()][which], noised.shares[at][position()][which]);
  }
  double with(std::int64_t layer, const Line& output) const {
    return PlainRun(model, own.tokens, own.shape.subject_start, noise,
                    {layer, {{own.shape.places[0][0], output}}})
        .difference;
  }
  double with_experts(std::int64_t layer, const std::vector<std::pair<std::int64_t, double>>& added) const {
    Line output = block(noised, layer);
    for (const auto& [expert, factor] : added) {
      const Line own_delta = delta(layer, expert);
      for (std::size_t i = 0; i < kWidth; ++i) output[i] += factor * own_delta[i];
    }
    return with(layer, output);
  }

  /// Equation 8: of the other clean-active experts that of the closest clean weight.
  std::int64_t control(std::int64_t layer, std::int64_t anchor) const {
    const Chosen& active = routed(clean, layer);
    std::int64_t best = -1;
    for (std::int64_t expert = 0; expert < kExperts; ++expert) {
      if (expert == anchor || !active.has(expert)) continue;
      const auto distance = [&](std::int64_t other) {
        return std::fabs(active.weight_of(other) - active.weight_of(anchor));
      };
      if (best < 0 || distance(expert) < distance(best)) best = expert;
    }
    return best;
  }

  double patched(const Patch& patch) const {
    const std::int64_t layer = patch.layer;
    if (patch.kind == Patch::Kind::kBlock) return with(layer, block(clean, layer));
    if (patch.kind == Patch::Kind::kNull) return noised.difference;
    const Chosen &active = routed(clean, layer), &other = routed(noised, layer);
    const auto& named = patch.experts.experts;
    std::vector<std::pair<std::int64_t, double>> added;
    const bool anchor = patch.experts.chosen == experts::Chosen::kAnchor;
    if (anchor || patch.experts.chosen == experts::Chosen::kMatched) {
      if (!active.has(named[0])) return noised.difference;
      const std::int64_t matched = control(layer, named[0]);
      const std::int64_t chosen = anchor ? named[0] : matched;
      const double own_norm = norm(delta(layer, chosen));
      const double smaller = std::min(norm(delta(layer, named[0])), norm(delta(layer, matched)));
      return with_experts(layer, {{chosen, patch.experts.equal_norm ? smaller / own_norm : 1.0}});
    }
    for (std::int64_t expert = 0; expert < kExperts; ++expert) {
      const bool either = active.has(expert) || other.has(expert);
      const bool wanted = patch.experts.chosen == experts::Chosen::kClean ? active.has(expert)
                          : patch.experts.chosen == experts::Chosen::kUnion
                              ? either
                              : either && (expert == 0 || expert == 3);
      if (wanted) added.emplace_back(expert, 1.0);
    }
    return with_experts(layer, added);
  }
};

void check_layer(const LayerOutcome& found, const Plain& plain, std::int64_t layer, std::int64_t item,
                 const Sweep* sweep) {
  const Chosen &active = plain.routed(plain.clean, layer), &other = plain.routed(plain.noised, layer);
  for (std::int64_t expert = 0; expert < kExperts; ++expert) {
    CAPTURE(expert);
    const auto cell = static_cast<std::size_t>(item * kExperts + expert);
    const bool either = active.has(expert) || other.has(expert);
    CHECK(static_cast<bool>(found.clean_active[cell]) == active.has(expert));
    CHECK(static_cast<bool>(found.noised_active[cell]) == other.has(expert));
    CHECK(found.clean_weight[cell] == doctest::Approx(active.weight_of(expert)).epsilon(1e-4));
    CHECK(found.noised_weight[cell] == doctest::Approx(other.weight_of(expert)).epsilon(1e-4));
    const double expected = either ? 2.0 * norm(plain.delta(layer, expert)) : 0.0;  // the block's scale is 2
    CHECK(found.delta_norm[cell] == doctest::Approx(expected).epsilon(1e-3));
    CHECK(found.clean_logit[cell] ==
          doctest::Approx(active.logits[static_cast<std::size_t>(expert)]).epsilon(1e-4));
    CHECK(found.noised_logit[cell] ==
          doctest::Approx(other.logits[static_cast<std::size_t>(expert)]).epsilon(1e-4));
    const bool swept = sweep != nullptr && (sweep->of_union ? either : active.has(expert));
    CHECK(static_cast<bool>(found.patched_active[cell]) == swept);
    if (swept) {
      CHECK(found.patched[cell] == doctest::Approx(plain.with_experts(layer, {{expert, 1.0}})).epsilon(1e-4));
    } else {
      CHECK(std::isnan(found.patched[cell]));
    }
  }
  for (std::int64_t slot = 0; slot < 2 * kTopK; ++slot) {
    const auto cell = static_cast<std::size_t>(item * 2 * kTopK + slot);
    const auto place = static_cast<std::size_t>(slot % kTopK);
    const std::int64_t expert = (slot < kTopK ? active : other).expert[place];
    CHECK(found.routed[cell] == expert);
    CHECK(static_cast<bool>(found.valid[cell]) == (slot < kTopK || !active.has(expert)));
  }
}

void check_against_plain(const Outcome& found, const ToyModel& model, const std::vector<Case>& cases,
                         const Job& own) {
  for (std::size_t index = 0; index < cases.size(); ++index) {
    for (std::int64_t draw = 0; draw < kDraws; ++draw) {
      const Plain plain(model, cases[index], draw);
      const auto item = static_cast<std::int64_t>(index) * kDraws + draw;
      CHECK(found.clean()[index] == doctest::Approx(plain.clean.difference).epsilon(1e-4));
      CHECK(found.noised()[static_cast<std::size_t>(item)] ==
            doctest::Approx(plain.noised.difference).epsilon(1e-4));
      for (std::size_t column = 0; column < own.patches.size(); ++column) {
        CAPTURE(column);
        const std::size_t cell =
            (index * own.patches.size() + column) * kDraws + static_cast<std::size_t>(draw);
        CHECK(found.patched()[cell] == doctest::Approx(plain.patched(own.patches[column])).epsilon(1e-4));
      }
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        CAPTURE(layer);
        const Sweep* sweep = nullptr;
        for (const Sweep& one : own.sweeps) {
          if (one.layer == layer) sweep = &one;
        }
        check_layer(found.layers().at({layer, 0}), plain, layer, item, sweep);
      }
    }
  }
}

std::vector<LayerFacts> facts(std::int64_t fused_from) {
  LayerFacts own;
  own.experts = true;
  own.expert_count = kExperts;
  own.fused_from = fused_from;
  own.checked_rows = 4;
  return std::vector<LayerFacts>(kLayers, own);
}

const std::map<std::int64_t, double> kScales{{0, 2.0}, {1, 2.0}, {2, 2.0}};

}  // namespace

TEST_CASE("a pass gives what plain forwards of one patch each give, wherever forks join") {
  const ToyModel model;
  const Job own = job();
  for (const bool last : {true, false}) {
    for (const Join join : {Join::kAfterLayer, Join::kBeforeLayer, Join::kStart}) {
      for (const std::int64_t fused_from : {0, 1}) {
        CAPTURE(last);
        CAPTURE(static_cast<int>(join));
        CAPTURE(fused_from);
        const auto cases = cases_of(last);
        const auto runs = static_cast<std::int64_t>(runs_of(own).size());
        const Pass pass(own, facts(fused_from), cases, 0, runs, join);
        Outcome found(own, 2);
        found.take(pass, {HookedModel(model, pass).run(), {}, {}}, kScales);
        CHECK(pass.misfired().empty());
        CHECK(!pass.failure());
        CHECK((pass.fused_calls() > 0) == (fused_from > 0));
        check_against_plain(found, model, cases, own);
      }
    }
  }
}

TEST_CASE("parts of the runs, pass by pass, make the same outcome") {
  const ToyModel model;
  const Job own = job();
  const auto cases = cases_of(true);
  Outcome found(own, 2);
  const auto runs = static_cast<std::int64_t>(runs_of(own).size());
  for (std::int64_t begin = 0; begin < runs; begin += 13) {
    const Pass pass(own, facts(0), cases, begin, std::min(runs, begin + 13), Join::kAfterLayer);
    found.take(pass, {HookedModel(model, pass).run(), {}, {}}, kScales);
  }
  check_against_plain(found, model, cases, own);
}

TEST_CASE("an outcome takes what fits it alone") {
  const ToyModel model;
  const Job own = job();
  const Pass pass(own, facts(0), cases_of(true), 0, 4, Join::kStart);
  auto differences = HookedModel(model, pass).run();
  Outcome other(own, 3), same(own, 2);
  CHECK_THROWS_AS(other.take(pass, {differences, {}, {}}, {}), std::invalid_argument);
  differences.pop_back();
  CHECK_THROWS_AS(same.take(pass, {differences, {}, {}}, {}), std::invalid_argument);
  auto few = facts(0);
  for (LayerFacts& layer : few) layer.expert_count = 1;
  const Pass wrong(own, few, cases_of(true), 0, 4, Join::kStart);
  const auto found = HookedModel(model, wrong).run();
  CHECK_THROWS_WITH_AS(same.take(wrong, {found, {}, {}}, {}), doctest::Contains("of 1"),
                       std::invalid_argument);
}

TEST_CASE("direct effects go where the logit difference of their run goes") {
  const ToyModel model;
  const Job own = job();
  const auto cases = cases_of(true);
  Outcome found(own, 2);
  const auto runs = static_cast<std::int64_t>(runs_of(own).size());
  for (std::int64_t begin = 0; begin < runs; begin += 13) {
    const Pass pass(own, facts(0), cases, begin, std::min(runs, begin + 13), Join::kAfterLayer);
    const auto differences = HookedModel(model, pass).run();
    // Each run's own difference, and its negative, in the places of its direct effects.
    const auto forks = static_cast<std::int64_t>(pass.runs().size()) * own.draws;
    const std::int64_t rows = 1 + own.draws + forks;
    Readings readings{differences, {}, {}};
    for (std::int64_t index = 0; index < 2; ++index) {
      for (std::int64_t fork = 0; fork < forks; ++fork) {
        const double value = differences[static_cast<std::size_t>(index * rows + 1 + own.draws + fork)];
        readings.direct.push_back(value);
        readings.direct_linear.push_back(-value);
      }
    }
    Readings few = readings;
    few.direct_linear.pop_back();
    CHECK_THROWS_WITH_AS(found.take(pass, few, kScales), doctest::Contains("direct effects"),
                         std::invalid_argument);
    found.take(pass, readings, kScales);
  }
  CHECK(found.direct() == found.patched());
  for (std::size_t at = 0; at < found.patched().size(); ++at) {
    CHECK(found.direct_linear()[at] == -found.patched()[at]);
  }
  for (const auto& [layer, table] : found.layers()) {
    for (std::size_t at = 0; at < table.patched.size(); ++at) {
      CHECK((table.patched_active[at] != 0) == !std::isnan(table.direct[at]));
      if (table.patched_active[at] == 0) continue;
      CHECK(table.direct[at] == table.patched[at]);
      CHECK(table.direct_linear[at] == -table.patched[at]);
    }
  }
}
