// Patches at several places, from either run, against plain forwards of one patch each.

#include <doctest/doctest.h>

#include <cmath>

#include "toy_model.h"

using namespace moetrace;
using namespace moetrace::pass;
using namespace moetrace::testing;
using tree::Join;

namespace {

constexpr std::int64_t kDraws = 2, kPlaces = 4;

/// Places: the last token; the subject's two; a token before the subject or in it; one that only the first
/// case has.
std::vector<Case> cases_of_places() {
  std::vector<Case> found(2);
  found[0].tokens = {1, 4, 7, 2, 9, 3};
  found[0].shape = {6, 1, 3, {{5}, {1, 2}, {0}, {3}}};
  found[1].tokens = {3, 8, 5, 6};
  found[1].shape = {4, 0, 2, {{3}, {0, 1}, {1}, {}}};
  double phase = 0.0;
  for (Case& own : found) own.vectors = varied(kDraws * 2 * kWidth, phase += 1.0);
  return found;
}

Job job_of_places() {
  using experts::Chosen;
  Job found;
  found.layers = kLayers;
  found.draws = kDraws;
  found.place_tokens = {1, 2, 1, 1};
  for (const Origin origin : {Origin::kDenoise, Origin::kNoise}) {
    for (std::int64_t place = 0; place < kPlaces; ++place) {
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        found.patches.push_back({layer, Patch::Kind::kBlock, {}, place, origin});
        for (const Chosen chosen : {Chosen::kClean, Chosen::kUnion, Chosen::kExperts}) {
          Patch own{layer, Patch::Kind::kExperts, {}, place, origin};
          own.experts.chosen = chosen;
          own.experts.experts = {0, 3};
          found.patches.push_back(own);
        }
      }
      found.patches.push_back({0, Patch::Kind::kNull, {}, place, origin});
      const std::int64_t slots = place == 1 ? 2 * kTopK : kTopK;
      const std::int64_t layer = origin == Origin::kNoise ? 1 : 2;
      found.sweeps.push_back({layer, slots, place % 2 == 0, place, origin});
    }
  }
  return found;
}

/// Clean and noised run of a case and draw, and any patched one.
struct Both {
  const ToyModel& model;
  const Case& own;
  Numbers noise;
  PlainRun clean, noised;

  Both(const ToyModel& toy, const Case& given, std::int64_t draw)
      : model(toy),
        own(given),
        noise(line(given.vectors, draw, 2 * kWidth)),
        clean(toy, given.tokens, 0, {}),
        noised(toy, given.tokens, given.shape.subject_start, noise) {}

  Line delta(std::int64_t layer, std::int64_t position, std::int64_t expert) const {
    const auto at = static_cast<std::size_t>(layer), token = static_cast<std::size_t>(position);
    Line found = clean.shares[at][token][static_cast<std::size_t>(expert)];
    const Line& other = noised.shares[at][token][static_cast<std::size_t>(expert)];
    for (std::size_t i = 0; i < kWidth; ++i) found[i] -= other[i];
    return found;
  }

  bool routes(const PlainRun& run, std::int64_t layer, std::int64_t position, std::int64_t expert) const {
    return run.routed[static_cast<std::size_t>(layer)][static_cast<std::size_t>(position)].has(expert);
  }
  bool at_any(const PlainRun& run, std::int64_t layer, std::int64_t place, std::int64_t expert) const {
    for (const std::int64_t position : own.shape.positions(place)) {
      if (routes(run, layer, position, expert)) return true;
    }
    return false;
  }

  /// What a patch gives; `wanted` says which experts' patch vectors it adds at a token.
  template <typename Wanted>
  double patched(const Patch& patch, const Wanted& wanted) const {
    const bool from_clean = patch.origin == Origin::kNoise;
    const PlainRun &origin = from_clean ? clean : noised, &other = from_clean ? noised : clean;
    PlainPatch found{patch.layer, {}};
    const auto layer = static_cast<std::size_t>(patch.layer);
    for (const std::int64_t position : own.shape.positions(patch.place)) {
      const auto token = static_cast<std::size_t>(position);
      Line output = (patch.kind == Patch::Kind::kBlock ? other : origin).block[layer][token];
      for (std::int64_t expert = 0; patch.kind == Patch::Kind::kExperts && expert < kExperts; ++expert) {
        if (!wanted(position, expert)) continue;
        const Line added = delta(patch.layer, position, expert);
        for (std::size_t i = 0; i < kWidth; ++i) output[i] += (from_clean ? -1.0 : 1.0) * added[i];
      }
      found.output[position] = output;
    }
    return PlainRun(model, own.tokens, from_clean ? 0 : own.shape.subject_start,
                    from_clean ? Numbers() : noise, found)
        .difference;
  }

  double patched(const Patch& patch) const {
    return patched(patch, [&](std::int64_t position, std::int64_t expert) {
      const bool active = routes(clean, patch.layer, position, expert);
      const bool either = active || routes(noised, patch.layer, position, expert);
      const bool named = expert == 0 || expert == 3;
      return patch.experts.chosen == experts::Chosen::kClean   ? active
             : patch.experts.chosen == experts::Chosen::kUnion ? either
                                                               : either && named;
    });
  }

  double weight(const PlainRun& run, std::int64_t layer, std::int64_t place, std::int64_t expert) const {
    double sum = 0;
    for (const std::int64_t position : own.shape.positions(place)) {
      sum +=
          run.routed[static_cast<std::size_t>(layer)][static_cast<std::size_t>(position)].weight_of(expert);
    }
    return sum;
  }
};

void check_sweep(const LayerOutcome& found, const Both& plain, const Sweep& sweep, std::int64_t item) {
  for (std::int64_t expert = 0; expert < kExperts; ++expert) {
    CAPTURE(expert);
    const auto cell = static_cast<std::size_t>(item * kExperts + expert);
    const bool active = plain.at_any(plain.clean, sweep.layer, sweep.place, expert);
    const bool other = plain.at_any(plain.noised, sweep.layer, sweep.place, expert);
    CHECK((found.clean_active[cell] != 0) == active);
    CHECK((found.noised_active[cell] != 0) == other);
    CHECK(found.clean_weight[cell] ==
          doctest::Approx(plain.weight(plain.clean, sweep.layer, sweep.place, expert)).epsilon(1e-4));
    CHECK(found.noised_weight[cell] ==
          doctest::Approx(plain.weight(plain.noised, sweep.layer, sweep.place, expert)).epsilon(1e-4));
    double squares = 0;
    for (const std::int64_t position : plain.own.shape.positions(sweep.place)) {
      for (const double value : plain.delta(sweep.layer, position, expert)) squares += value * value;
    }
    CHECK(found.delta_norm[cell] == doctest::Approx(active || other ? std::sqrt(squares) : 0).epsilon(1e-3));
    const bool swept = sweep.of_union ? active || other : active;
    CHECK((found.patched_active[cell] != 0) == swept);
    CHECK(std::isnan(found.patched[cell]) == !swept);
    if (!swept) continue;
    const Patch patch{sweep.layer, Patch::Kind::kExperts, {}, sweep.place, sweep.origin};
    const auto alone = [&](std::int64_t, std::int64_t which) { return which == expert; };
    CHECK(found.patched[cell] == doctest::Approx(plain.patched(patch, alone)).epsilon(1e-4));
  }
  const auto last = plain.own.shape.positions(sweep.place);
  for (std::int64_t expert = 0; expert < kExperts; ++expert) {
    const auto cell = static_cast<std::size_t>(item * kExperts + expert);
    if (last.empty()) {  // of a whole batch without the place nothing is known
      CHECK((found.noised_logit.empty() || std::isnan(found.noised_logit[cell])));
      continue;
    }
    const double logit = found.noised_logit[cell];
    const auto& routed = plain.noised.routed[static_cast<std::size_t>(sweep.layer)];
    CHECK(logit == doctest::Approx(
                       routed[static_cast<std::size_t>(last.back())].logits[static_cast<std::size_t>(expert)])
                       .epsilon(1e-4));
  }
}

void check_places(const Outcome& found, const ToyModel& model, const std::vector<Case>& cases,
                  const Job& own) {
  for (std::size_t index = 0; index < cases.size(); ++index) {
    for (std::int64_t draw = 0; draw < kDraws; ++draw) {
      const Both plain(model, cases[index], draw);
      const auto item = static_cast<std::int64_t>(index) * kDraws + draw;
      for (std::size_t column = 0; column < own.patches.size(); ++column) {
        CAPTURE(index);
        CAPTURE(column);
        const Patch& patch = own.patches[column];
        const std::size_t cell = index * own.patches.size() + column;
        const double value = found.patched()[cell * kDraws + static_cast<std::size_t>(draw)];
        const bool here = cases[index].shape.has(patch.place);
        CHECK((found.present()[cell] != 0) == here);
        CHECK(std::isnan(value) == !here);
        if (here) CHECK(value == doctest::Approx(plain.patched(patch)).epsilon(1e-4));
      }
      for (const Sweep& sweep : own.sweeps) {
        CAPTURE(sweep.layer);
        CAPTURE(sweep.place);
        check_sweep(found.layers().at({sweep.layer, sweep.place}), plain, sweep, item);
      }
    }
  }
}

std::vector<LayerFacts> facts_of(std::int64_t fused_from) {
  LayerFacts own;
  own.experts = true;
  own.expert_count = kExperts;
  own.fused_from = fused_from;
  return std::vector<LayerFacts>(kLayers, own);
}

}  // namespace

TEST_CASE("patches of several places and either run are what plain forwards give, wherever forks join") {
  const ToyModel model;
  const Job own = job_of_places();
  const auto cases = cases_of_places();
  const auto runs = static_cast<std::int64_t>(runs_of(own).size());
  for (const Join join : {Join::kAfterLayer, Join::kBeforeLayer, Join::kStart}) {
    for (const std::int64_t fused_from : {0, 1}) {
      for (const std::int64_t step : {runs, std::int64_t{17}}) {
        CAPTURE(static_cast<int>(join));
        CAPTURE(fused_from);
        Outcome found(own, 2);
        for (std::int64_t begin = 0; begin < runs; begin += step) {
          const Pass pass(own, facts_of(fused_from), cases, begin, std::min(runs, begin + step), join);
          found.take(pass, {HookedModel(model, pass).run(), {}, {}}, {});
          CHECK(pass.misfired().empty());
          CHECK(!pass.failure());
        }
        check_places(found, model, cases, own);
      }
    }
  }
}

TEST_CASE("a batch in which no case has the place of a patch") {
  const ToyModel model;
  const Job own = job_of_places();
  const std::vector<Case> cases{cases_of_places()[1]};
  const auto runs = static_cast<std::int64_t>(runs_of(own).size());
  for (const Join join : {Join::kAfterLayer, Join::kBeforeLayer, Join::kStart}) {
    Outcome found(own, 1);
    for (std::int64_t begin = 0; begin < runs; begin += 3) {
      const Pass pass(own, facts_of(0), cases, begin, std::min(runs, begin + 3), join);
      found.take(pass, {HookedModel(model, pass).run(), {}, {}}, {});
    }
    check_places(found, model, cases, own);
  }
}

TEST_CASE("the last rows of every run are those of its prompt's final tokens, or of the run it leaves from") {
  const Job own = job_of_places();
  const auto cases = cases_of_places();
  const auto runs = static_cast<std::int64_t>(runs_of(own).size());
  const Pass pass(own, facts_of(0), cases, 0, runs, Join::kAfterLayer);
  const tree::Plan& plan = pass.layout().plan();
  const auto finals = pass.final_rows();
  const std::int64_t count = 5;  // one more than the second prompt has
  const auto rows = pass.last_rows(count);
  REQUIRE(rows.size() == cases.size() * finals.size() * static_cast<std::size_t>(count));
  auto row = rows.begin();
  for (std::size_t index = 0; index < cases.size(); ++index) {
    const tree::CaseShape& shape = cases[index].shape;
    for (std::size_t run = 0; run < finals.size(); ++run) {
      const std::int64_t given = static_cast<std::int64_t>(run) - 1 - kDraws;
      const Patch* patch = given < 0 ? nullptr : &pass.runs()[static_cast<std::size_t>(given / kDraws)].patch;
      const std::int64_t draw = given < 0 ? static_cast<std::int64_t>(run) - 1 : given % kDraws;
      const bool from_clean = patch != nullptr && patch->origin == Origin::kNoise;
      const std::int64_t chain =
          patch == nullptr ? 0
                           : shape.chain(fork_of(pass.runs()[static_cast<std::size_t>(given / kDraws)], 0));
      for (std::int64_t back = 0; back < count; ++back, ++row) {
        CAPTURE(run);
        CAPTURE(back);
        const std::int64_t position = std::max<std::int64_t>(shape.length - 1 - back, 0);
        const auto at = index * static_cast<std::size_t>(plan.rows) + static_cast<std::size_t>(*row);
        CHECK(plan.position[at] == position);
        const bool own_row = position >= shape.length - chain;
        CHECK(plan.fork[at] == (own_row ? given : -1));
        const bool shared = position < shape.subject_start;
        CHECK(plan.branch[at] == (from_clean || (shared && !own_row) ? -1 : draw));
        if (back == 0 && (patch == nullptr || chain > 0)) CHECK(*row == finals[run]);
      }
    }
  }
}

TEST_CASE("a layer's experts are swept once at a place") {
  Job own = job_of_places();
  own.sweeps = {{1, 2, false, 0}, {1, 2, true, 0}};
  CHECK_THROWS_WITH_AS(Outcome(own, 1), doctest::Contains("two sweeps of layer 1"), std::invalid_argument);
}
