#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "moetrace/experts/controls.h"
#include "moetrace/experts/experts_call.h"
#include "plain_experts.h"

using namespace moetrace;
using namespace moetrace::experts;
using namespace moetrace::testing;
using hooks::Failure;
using hooks::Step;
using hooks::Trouble;

namespace {

// Two cases of five rows: row 1 is clean, row 2 noised, rows 3 and 4 are patched by the two patches.
constexpr std::int64_t kCases = 2, kRows = 5, kTopK = 3, kWidth = 4;
const std::vector<std::int64_t> kIndex{
    0, 1, 2, 4, 2, 0, 2, 3, 4, 2, 3, 4, 2, 3, 4,   // case 0: clean 4, 2, 0; noised 2, 3, 4
    1, 2, 3, 1, 0, 3, 3, 0, 1, 3, 0, 1, 3, 0, 1};  // case 1: both the same three, in other orders

ExpertsCall::Rows rows() {
  ExpertsCall::Rows found;
  found.cases = kCases;
  found.before = found.inside = kRows;
  found.checked = {1, 2, kRows + 1, kRows + 2};
  found.clean = {1, kRows + 1};
  found.noised = {2, kRows + 2};
  for (std::int64_t index = 0; index < kCases; ++index) {
    found.groups.push_back({index});
    for (std::int64_t patch = 0; patch < 2; ++patch) {
      found.written.push_back({index, patch, static_cast<std::size_t>(index), index, 3 + patch, false});
    }
  }
  found.tokens = {1};
  return found;
}

struct Model {
  PlainExperts experts;
  Numbers hidden = varied(kCases * kRows * kWidth, 0.2);
  Numbers weight = [] {
    Numbers found = varied(kCases * kRows * kTopK, 1.0);
    for (float& own : found) own = 0.4F + 0.3F * own;
    return found;
  }();

  Tensor hidden_tensor() const { return tensor(hidden, {kCases * kRows, kWidth}); }
  Tensor index_tensor() const { return integers(kIndex, {kCases * kRows, kTopK}); }
  Tensor weight_tensor() const { return tensor(weight, {kCases * kRows, kTopK}); }
  Tensor output() const { return experts.module(hidden_tensor(), index_tensor(), weight_tensor()); }

  Line contribution(std::int64_t row, std::int64_t expert) const {
    for (std::int64_t place = 0; place < kTopK; ++place) {
      const auto at = static_cast<std::size_t>(row * kTopK + place);
      if (kIndex[at] == expert) {
        return experts.contribution(experts.row_of(hidden, row), expert, static_cast<double>(weight[at]));
      }
    }
    return Line(kWidth);
  }
  /// Equation 6, in a case.
  Line delta(std::int64_t index, std::int64_t expert) const {
    Line found = contribution(index * kRows + 1, expert);
    const Line noised = contribution(index * kRows + 2, expert);
    for (std::size_t i = 0; i < found.size(); ++i) found[i] -= noised[i];
    return found;
  }

  std::vector<Tensor> leave(ExpertsCall& call, const Tensor& output) const {
    return call.fire(Step::kLeave, {hidden_tensor(), index_tensor(), weight_tensor(), output,
                                    experts.gate_up_tensor(), experts.down_tensor()});
  }
};

double norm(const Line& line) {
  double squares = 0;
  for (const double own : line) squares += own * own;
  return std::sqrt(squares);
}

ExpertPatch patch_of(Chosen chosen, std::vector<std::int64_t> named = {}, bool equal_norm = false) {
  ExpertPatch patch;
  patch.chosen = chosen;
  patch.experts = std::move(named);
  patch.equal_norm = equal_norm;
  return patch;
}

/// The noised row's output plus factors times patch vectors, for the row of a case.
Numbers patched(const Model& model, std::int64_t index,
                const std::vector<std::pair<std::int64_t, double>>& added) {
  Numbers found = line(numbers(model.output()), index * kRows + 2, kWidth);
  for (const auto& [expert, factor] : added) {
    const Line delta = model.delta(index, expert);
    for (std::size_t i = 0; i < found.size(); ++i) found[i] += static_cast<float>(factor * delta[i]);
  }
  return found;
}

std::string complaint_of(const Model& model, const Tensor& output, Trouble expected) {
  ExpertsCall call("experts of layer 2", rows(), {patch_of(Chosen::kClean), patch_of(Chosen::kUnion)}, 0);
  try {
    model.leave(call, output);
  } catch (const Failure& failure) {
    CHECK(failure.trouble() == expected);
    return failure.what();
  }
  return "";
}

Tensor with(const Tensor& output, std::int64_t row, std::size_t place, float value) {
  Numbers all = numbers(output);
  all[static_cast<std::size_t>(row * kWidth) + place] = value;
  return tensor(all, {kCases * kRows, kWidth});
}

}  // namespace

TEST_CASE("patched rows get the noised output plus the sum of chosen patch vectors; all others stay") {
  const Model model;
  ExpertsCall call("experts of layer 2", rows(), {patch_of(Chosen::kClean), patch_of(Chosen::kUnion)}, 0);
  const auto found = model.leave(call, model.output());
  REQUIRE(found.size() == 1);
  const Numbers lines = numbers(found[0]), before = numbers(model.output());
  for (std::int64_t index = 0; index < kCases; ++index) {
    for (std::int64_t row = 0; row < 3; ++row) {
      CHECK(line(lines, index * kRows + row, kWidth) == line(before, index * kRows + row, kWidth));
    }
  }
  CHECK(difference(line(lines, 3, kWidth), patched(model, 0, {{4, 1}, {2, 1}, {0, 1}})) < 1e-5);
  CHECK(difference(line(lines, 4, kWidth), patched(model, 0, {{4, 1}, {2, 1}, {0, 1}, {3, 1}})) < 1e-5);
  const Numbers all = patched(model, 1, {{1, 1}, {0, 1}, {3, 1}});
  CHECK(difference(line(lines, kRows + 3, kWidth), all) < 1e-5);
  CHECK(difference(line(lines, kRows + 4, kWidth), all) < 1e-5);
  // All experts of either run: the clean output itself.
  CHECK(difference(line(lines, 4, kWidth), line(before, 1, kWidth)) < 1e-5);
  CHECK(call.fired() == 1);
}

TEST_CASE("routing unions and norms of patch vectors, by item") {
  const Model model;
  ExpertsCall call("experts of layer 2", rows(), {patch_of(Chosen::kClean), patch_of(Chosen::kUnion)}, 0);
  model.leave(call, model.output());
  REQUIRE(call.routing().size() == 2);
  CHECK(call.routing()[0].expert == std::vector<std::int64_t>{4, 2, 0, 2, 3, 4});
  CHECK(call.routing()[0].valid == std::vector<bool>{true, true, true, false, true, false});
  CHECK(call.routing()[1].valid == std::vector<bool>{true, true, true, false, false, false});
  CHECK(call.routing()[0].clean_weight[1] == model.weight[1 * kTopK + 1]);
  CHECK(call.routing()[0].noised_weight[1] == model.weight[2 * kTopK + 0]);
  for (std::size_t item = 0; item < 2; ++item) {
    const auto& own = call.routing()[item];
    for (std::size_t slot = 0; slot < own.slots(); ++slot) {
      if (!own.valid[slot]) continue;
      const double expected = norm(model.delta(static_cast<std::int64_t>(item), own.expert[slot]));
      CHECK(call.norms()[item][slot] == doctest::Approx(expected).epsilon(1e-4));
    }
  }
  call.reset();
  CHECK(call.routing().empty());
  CHECK(call.fired() == 0);
}

TEST_CASE("anchor and matched control at equal norm (equations 8 and 10)") {
  const Model model;
  const std::vector<ExpertPatch> pair{patch_of(Chosen::kAnchor, {2}, true),
                                      patch_of(Chosen::kMatched, {2}, true)};
  ExpertsCall call("experts of layer 2", rows(), pair, 0);
  const Numbers lines = numbers(model.leave(call, model.output()).at(0));
  // By plain loops: of the other clean-routed experts the one of the closest clean weight.
  std::int64_t control = -1;
  double least = INFINITY;
  const double anchor_weight = static_cast<double>(model.weight[kTopK + 1]);
  for (const std::int64_t place : {0, 2}) {
    const double weight = static_cast<double>(model.weight[static_cast<std::size_t>(kTopK + place)]);
    if (std::fabs(weight - anchor_weight) >= least) continue;
    least = std::fabs(weight - anchor_weight);
    control = kIndex[static_cast<std::size_t>(kTopK + place)];
  }
  const double anchor_norm = norm(model.delta(0, 2)), control_norm = norm(model.delta(0, control));
  const double smaller = std::min(anchor_norm, control_norm);
  CHECK(difference(line(lines, 3, kWidth), patched(model, 0, {{2, smaller / anchor_norm}})) < 1e-5);
  CHECK(difference(line(lines, 4, kWidth), patched(model, 0, {{control, smaller / control_norm}})) < 1e-5);
  // Case 1 doesn't route to the anchor: nothing is patched.
  CHECK(line(lines, kRows + 3, kWidth) == line(numbers(model.output()), kRows + 2, kWidth));
  CHECK(line(lines, kRows + 4, kWidth) == line(numbers(model.output()), kRows + 2, kWidth));
}

TEST_CASE("contributions that don't sum to the output are found out, row by row") {
  const Model model;
  const Tensor good = model.output();
  CHECK(complaint_of(model, good, Trouble::kContribution).empty());
  const float entry = numbers(good)[2 * kWidth];
  CHECK(complaint_of(model, with(good, 2, 0, entry + 0.1F), Trouble::kContribution).find("in row 2") !=
        std::string::npos);
  // Rows that nothing rests on aren't looked at.
  CHECK(complaint_of(model, with(good, 0, 0, 9.0F), Trouble::kContribution).empty());
}

TEST_CASE("a case that isn't finite doesn't switch the check off for the others") {
  const Model model;
  const Numbers all = numbers(model.output());
  // Whichever case comes first.
  for (const auto& [infinite, other] :
       {std::pair{kRows + 1, std::int64_t{2}}, std::pair{std::int64_t{1}, kRows + 2}}) {
    const float entry = all[static_cast<std::size_t>(other * kWidth)];
    for (const float value : {NAN, INFINITY}) {
      const Tensor broken = with(model.output(), infinite, 2, value);
      CHECK(complaint_of(model, broken, Trouble::kContribution).empty());
      const auto text = complaint_of(model, with(broken, other, 0, entry + 0.1F), Trouble::kContribution);
      CHECK(text.find("in row " + std::to_string(other)) != std::string::npos);
    }
  }
}

TEST_CASE("the tolerance is relative to the row, not to the batch") {
  Model model;
  for (std::size_t i = 0; i < kWidth; ++i) model.hidden[(kRows + 1) * kWidth + i] *= 1e3F;
  const Tensor good = model.output();
  const Numbers all = numbers(good);
  const auto size = [&](std::int64_t row) {
    float largest = 0;
    for (const float own : line(all, row, kWidth)) largest = std::max(largest, std::fabs(own));
    return largest;
  };
  REQUIRE(size(kRows + 1) > 1e4F * size(2));  // case 1's row is that much larger
  const std::size_t first = 2 * kWidth, large = (kRows + 1) * kWidth;
  const float error = 0.1F * size(2);
  CHECK(complaint_of(model, good, Trouble::kContribution).empty());
  CHECK(!complaint_of(model, with(good, 2, 0, all[first] + error), Trouble::kContribution).empty());
  CHECK(complaint_of(model, with(good, kRows + 1, 0, all[large] + error), Trouble::kContribution).empty());
}

TEST_CASE("the fused routine leaves the module the rows that count, and is held to them") {
  const Model model;
  const auto enter = [&](ExpertsCall& call) {
    return call.fire(Step::kEnter, {model.hidden_tensor(), model.index_tensor(), model.weight_tensor(),
                                    model.experts.gate_up_tensor(), model.experts.down_tensor()});
  };
  const std::vector<ExpertPatch> patches{patch_of(Chosen::kClean), patch_of(Chosen::kUnion)};
  ExpertsCall plain("experts of layer 2", rows(), patches, 0);
  const Numbers expected = numbers(model.leave(plain, model.output()).at(0));

  ExpertsCall call("experts of layer 2", rows(), patches, 1);
  const auto left = enter(call);
  REQUIRE(left.size() == 3);
  CHECK(ops::shape_of(left[0]) == Shape{4, kWidth});
  const auto checked = rows().checked;
  for (std::size_t at = 0; at < checked.size(); ++at) {
    CHECK(line(numbers(left[0]), static_cast<std::int64_t>(at), kWidth) ==
          line(model.hidden, checked[at], kWidth));
  }
  const Tensor computed = model.experts.module(left[0], left[1], left[2]);
  const auto leave = [&](ExpertsCall& own, const Tensor& output) {
    return own.fire(Step::kLeave, {left[0], left[1], left[2], output, model.experts.gate_up_tensor(),
                                   model.experts.down_tensor()});
  };
  CHECK(difference(numbers(leave(call, computed).at(0)), expected) < 1e-5);
  CHECK(call.fused_calls() == 1);

  for (std::int64_t row = 0; row < 4; ++row) {  // any of them may be the one that differs
    ExpertsCall other("experts of layer 2", rows(), patches, 1);
    enter(other);
    Numbers wrong = numbers(computed);
    wrong[static_cast<std::size_t>(row * kWidth)] += 0.1F;
    try {
      leave(other, tensor(wrong, {4, kWidth}));
      FAIL("no failure");
    } catch (const Failure& failure) {
      CHECK(failure.trouble() == Trouble::kNotFused);
    }
  }
  // Fewer rows than it pays for: the module is left alone.
  ExpertsCall small("experts of layer 2", rows(), patches, kCases * kRows + 1);
  CHECK(enter(small).empty());
  CHECK(small.fused_calls() == 0);
}

TEST_CASE("rows that have just joined share the output of the rows that they are copies of") {
  const Model model;
  auto own = rows();
  own.before = 3;
  own.sources = {0, 1, 2, 2, 1, 0, 1, 2, 2, 1};
  ExpertsCall call("experts of layer 2", own, {patch_of(Chosen::kClean), patch_of(Chosen::kExperts, {9})}, 0);
  const auto left =
      call.fire(Step::kEnter, {model.hidden_tensor(), model.index_tensor(), model.weight_tensor()});
  REQUIRE(left.size() == 3);
  const std::vector<std::int64_t> kept{0, 1, 2, kRows, kRows + 1, kRows + 2};
  REQUIRE(left[0].size(0) == 6);
  for (std::size_t at = 0; at < kept.size(); ++at) {
    CHECK(line(numbers(left[0]), static_cast<std::int64_t>(at), kWidth) ==
          line(model.hidden, kept[at], kWidth));
  }
  const Tensor output = model.experts.module(left[0], left[1], left[2]);
  const auto found = call.fire(Step::kLeave, {left[0], left[1], left[2], output,
                                              model.experts.gate_up_tensor(), model.experts.down_tensor()});
  const Numbers lines = numbers(found.at(0)), whole = numbers(model.output());
  REQUIRE(found.at(0).size(0) == kCases * kRows);
  for (std::int64_t index = 0; index < kCases; ++index) {
    for (std::int64_t row = 0; row < 3; ++row) {
      CHECK(difference(line(lines, index * kRows + row, kWidth), line(whole, index * kRows + row, kWidth)) <
            1e-6);
    }
    // The second patch names an expert that nobody routes to: the noised output.
    CHECK(difference(line(lines, index * kRows + 4, kWidth), line(whole, index * kRows + 2, kWidth)) < 1e-6);
  }
  CHECK(difference(line(lines, 3, kWidth), patched(model, 0, {{4, 1}, {2, 1}, {0, 1}})) < 1e-5);
}

TEST_CASE("where the layout isn't known the module is asked pair by pair") {
  const Model model;
  ExpertsCall call("experts of layer 2", rows(), {patch_of(Chosen::kClean), patch_of(Chosen::kUnion)}, 0);
  const auto pairs =
      call.fire(Step::kPairs, {model.hidden_tensor(), model.index_tensor(), model.weight_tensor()});
  REQUIRE(pairs.size() == 3);
  CHECK(ops::shape_of(pairs[0]) == Shape{4 * kTopK, kWidth});
  const Tensor computed = model.experts.module(pairs[0], pairs[1], pairs[2]);
  const auto found = call.fire(Step::kLeave, {model.hidden_tensor(), model.index_tensor(),
                                              model.weight_tensor(), model.output(), computed});
  CHECK(difference(line(numbers(found.at(0)), 3, kWidth), patched(model, 0, {{4, 1}, {2, 1}, {0, 1}})) <
        1e-5);
}

TEST_CASE("tokens of one place are patched together, each by its own routing") {
  // Rows 1 and 2 of both cases taken for clean and noised rows of two tokens of one place: the first token is
  // case 0's, the second case 1's. Slots are those of the place: clean-routed experts 4, 2, 0, 1, 3.
  const Model model;
  auto own = rows();
  own.groups = {{0, 1}};
  own.tokens = {2};
  own.experts = 5;
  for (auto& written : own.written) written.group = 0;
  ExpertPatch slot = patch_of(Chosen::kSlot), subset = patch_of(Chosen::kSubset);
  slot.slot = 4;
  subset.subset = 0b1010;  // experts 2 and 1
  ExpertsCall call("experts of layer 2", own, {slot, subset}, 0);
  const Numbers lines = numbers(model.leave(call, model.output()).at(0));
  CHECK(difference(line(lines, 3, kWidth), patched(model, 0, {{3, 1}})) < 1e-5);
  CHECK(difference(line(lines, kRows + 3, kWidth), patched(model, 1, {{3, 1}})) < 1e-5);
  CHECK(difference(line(lines, 4, kWidth), patched(model, 0, {{2, 1}})) < 1e-5);
  CHECK(difference(line(lines, kRows + 4, kWidth), patched(model, 1, {{1, 1}})) < 1e-5);
  REQUIRE(call.routing().size() == 1);
  const RoutingUnion& routing = call.routing()[0];
  CHECK(std::vector<std::int64_t>(routing.expert.begin(), routing.expert.begin() + 5) ==
        std::vector<std::int64_t>{4, 2, 0, 1, 3});
  for (std::size_t at = 0; at < 10; ++at) CHECK(routing.valid[at] == (at < 5));
  CHECK(routing.clean_place[4] == 0);  // at the second token
  const auto squared = [&](std::int64_t index) { return std::pow(norm(model.delta(index, 3)), 2); };
  CHECK(call.norms()[0][4] == doctest::Approx(std::sqrt(squared(0) + squared(1))).epsilon(1e-4));
  own.experts = 4;  // fewer slots than experts are found
  ExpertsCall few("experts of layer 2", own, {slot, subset}, 0);
  CHECK_THROWS_WITH_AS(model.leave(few, model.output()), doctest::Contains("5 of 4"), std::exception);
}

TEST_CASE("a patch of the clean run goes on from the clean row, and takes the patch vectors away") {
  const Model model;
  auto own = rows();
  for (auto& written : own.written) written.from_clean = true;
  ExpertsCall call("experts of layer 2", own, {patch_of(Chosen::kExperts, {4}), patch_of(Chosen::kUnion)}, 0);
  const Numbers lines = numbers(model.leave(call, model.output()).at(0)), before = numbers(model.output());
  Numbers expected = line(before, 1, kWidth);
  const Line delta = model.delta(0, 4);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] -= static_cast<float>(delta[i]);
  CHECK(difference(line(lines, 3, kWidth), expected) < 1e-5);
  CHECK(difference(line(lines, 4, kWidth), line(before, 2, kWidth)) <
        1e-5);  // all of them: the noised output
}

TEST_CASE("rows must be given for every item and patch") {
  auto few = rows();
  few.written[3].item = 2;
  const std::vector<ExpertPatch> patches{patch_of(Chosen::kClean), patch_of(Chosen::kUnion)};
  CHECK_THROWS_AS(ExpertsCall("own", few, patches, 0), std::invalid_argument);
  auto uneven = rows();
  uneven.noised.pop_back();
  CHECK_THROWS_AS(ExpertsCall("own", uneven, patches, 0), std::invalid_argument);
}
