#include <doctest/doctest.h>

#include <string>

#include "toy_model.h"

using namespace moetrace;
using namespace moetrace::pass;
using namespace moetrace::testing;
using tree::Join;

namespace {

Case one_case() {
  Case own;
  own.tokens = {1, 4, 7, 2, 9};
  own.shape = {5, 1, 3, {{4}}};
  own.vectors = varied(2 * kWidth);
  return own;
}

Job job() {
  Job found;
  found.layers = kLayers;
  found.patches = {
      {0, Patch::Kind::kBlock, {}}, {2, Patch::Kind::kBlock, {}}, {1, Patch::Kind::kExperts, {}}};
  return found;
}

std::vector<LayerFacts> facts() {
  LayerFacts own;
  own.experts = true;
  own.expert_count = kExperts;
  return std::vector<LayerFacts>(kLayers, own);
}

Pass pass_of(Join join) { return {job(), facts(), {one_case()}, 0, 3, join}; }

bool names(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("runs are a job's patches, then the slots of its sweeps") {
  Job own = job();
  own.sweeps = {{1, 2, true}, {2, 3, false}};
  const auto runs = runs_of(own);
  REQUIRE(runs.size() == 3 + 4 + 3);
  for (std::size_t at = 0; at < runs.size(); ++at) {
    CHECK(runs[at].column == (at < 3 ? static_cast<std::int64_t>(at) : -1));
  }
  CHECK(runs[5].patch.layer == 1);
  CHECK(runs[5].patch.experts.noised_slot);
  CHECK(runs[5].patch.experts.slot == 0);
  CHECK(runs[9].patch.layer == 2);
  CHECK(runs[9].patch.experts.slot == 2);
  CHECK(!runs[9].patch.experts.noised_slot);
}

TEST_CASE("a site that never fires, or fires twice, is named with its layer") {
  const ToyModel model;
  const Pass whole = pass_of(Join::kStart);
  CHECK(names(whole.misfired(), "never fired: embedding of subjects, block of layer 0"));
  HookedModel(model, whole).run();
  CHECK(whole.misfired().empty());

  const Pass without = pass_of(Join::kStart);
  HookedModel skips(model, without);
  skips.skipped_block = 2;
  skips.run();
  CHECK(names(without.misfired(), "never fired: block of layer 2;"));

  const Pass twice = pass_of(Join::kStart);
  HookedModel repeats(model, twice);
  repeats.doubled_block = 1;
  repeats.run();
  CHECK(names(twice.misfired(), "fired repeatedly: experts of layer 1 (2 times);"));
  REQUIRE(twice.misfires().size() == 1);
  CHECK(std::string(module_of(twice.misfires()[0].place)) == "experts");
}

TEST_CASE("a failure is kept with its layer until the pass is over") {
  const ToyModel model;
  const Pass own = pass_of(Join::kAfterLayer);
  CHECK(own.failed() == nullptr);
  HookedModel skips(model, own);
  skips.skipped_block = 2;
  CHECK_THROWS_AS(skips.run(), hooks::Failure);
  REQUIRE(own.failure().has_value());
  CHECK(own.failure()->trouble() == hooks::Trouble::kCannotJoin);
  REQUIRE(own.failed() != nullptr);
  CHECK(own.failed()->layer == 2);
  CHECK(std::string(module_of(own.failed()->place)) == "layer");
}

TEST_CASE("after a reset the model may be run again, with the same result") {
  const ToyModel model;
  for (const Join join : {Join::kAfterLayer, Join::kBeforeLayer, Join::kStart}) {
    Pass own = pass_of(join);
    const auto first = HookedModel(model, own).run();
    own.reset();
    CHECK(HookedModel(model, own).run() == first);
    CHECK(own.misfired().empty());
  }
}

TEST_CASE("hooks are armed in the order of the layers, the experts before their block") {
  const Pass own = pass_of(Join::kBeforeLayer);
  std::int64_t layer = -1;
  for (const Hook& hook : own.hooks()) {
    CHECK(hook.layer >= layer);
    layer = hook.layer;
  }
  CHECK(own.hooks()[0].place == Place::kEmbedding);
  const auto place_of = [&](Place place, std::int64_t at) {
    for (std::size_t index = 0; index < own.hooks().size(); ++index) {
      if (own.hooks()[index].place == place && own.hooks()[index].layer == at) return index;
    }
    return own.hooks().size();
  };
  CHECK(place_of(Place::kLayerEntry, 1) < place_of(Place::kExpertsExit, 1));
  CHECK(place_of(Place::kExpertsExit, 1) < own.hooks().size());
}

TEST_CASE("what can't be laid out is refused") {
  CHECK_THROWS_AS(Pass(job(), facts(), {one_case()}, 0, 4, Join::kStart), std::invalid_argument);
  CHECK_THROWS_AS(Pass(job(), facts(), {one_case()}, 2, 1, Join::kStart), std::invalid_argument);
  CHECK_THROWS_AS(Pass(job(), {}, {one_case()}, 0, 3, Join::kStart), std::invalid_argument);
  CHECK_THROWS_AS(Pass(job(), facts(), {}, 0, 3, Join::kStart), std::invalid_argument);
  Case odd = one_case();
  odd.vectors.pop_back();
  CHECK_THROWS_AS(Pass(job(), facts(), {odd}, 0, 3, Join::kStart), std::invalid_argument);
  Case outside = one_case();
  outside.shape.places = {{5}};
  CHECK_THROWS_AS(Pass(job(), facts(), {outside}, 0, 3, Join::kStart), std::invalid_argument);
}
