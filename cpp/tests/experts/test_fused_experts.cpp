#include <doctest/doctest.h>

#include <cmath>

#include "plain_experts.h"

using namespace moetrace;
using namespace moetrace::experts;
using namespace moetrace::testing;

namespace {

constexpr std::int64_t kRows = 4, kTopK = 2;
const std::vector<std::int64_t> kIndex{3, 0, 1, 3, 4, 2, 0, 3};

struct Call {
  PlainExperts experts;
  Numbers hidden = varied(kRows * 4, 0.2), weight{0.6F, 0.4F, 0.9F, 0.1F, 0.5F, 0.5F, 0.7F, 0.3F};

  Routed routed() const {
    return {tensor(hidden, {kRows, 4}), integers(kIndex, {kRows, kTopK}), tensor(weight, {kRows, kTopK})};
  }
  /// (rows, k, width) by plain loops.
  Numbers expected() const {
    Numbers found;
    for (std::size_t pair = 0; pair < kIndex.size(); ++pair) {
      const Line hidden_row = experts.row_of(hidden, static_cast<std::int64_t>(pair) / kTopK);
      for (const double own : experts.contribution(hidden_row, kIndex[pair], weight[pair])) {
        found.push_back(static_cast<float>(own));
      }
    }
    return found;
  }
};

}  // namespace

TEST_CASE("contributions are the ablation differences of plain loops (equation 5)") {
  const Call call;
  const Tensor found = contributions(call.experts.fused(), call.routed());
  CHECK(ops::shape_of(found) == Shape{kRows, kTopK, 4});
  CHECK(difference(numbers(found), call.expected()) < 1e-6);
  // And without an expert the output lacks just its contribution.
  Call without = call;
  without.weight[2] = 0.0F;  // row 1's first expert
  const auto whole = fused_output(call.experts.fused(), call.routed(), {});
  const auto rest = fused_output(call.experts.fused(), without.routed(), {});
  Numbers alone(kRows * 4);
  for (std::size_t i = 0; i < 4; ++i) alone[4 + i] = call.expected()[2 * 4 + i];
  CHECK(difference(numbers(ops::sub(whole.output, rest.output)), alone) < 1e-6);
}

TEST_CASE("the fused output is the module's, and gives the wanted rows' contributions in their order") {
  const Call call;
  const Routed routed = call.routed();
  const auto found = fused_output(call.experts.fused(), routed, {3, 1});
  const Numbers module = numbers(call.experts.module(routed.hidden, routed.index, routed.weight));
  CHECK(difference(numbers(found.output), module) < 1e-6);
  REQUIRE(found.contribution.has_value());
  CHECK(ops::shape_of(*found.contribution) == Shape{2, kTopK, 4});
  const Numbers own = numbers(*found.contribution), expected = call.expected();
  CHECK(difference(line(own, 0, 8), line(expected, 3, 8)) < 1e-6);
  CHECK(difference(line(own, 1, 8), line(expected, 1, 8)) < 1e-6);
  CHECK(!fused_output(call.experts.fused(), routed, {}).contribution);
}

TEST_CASE("double precision stays double") {
  const Call call;
  const auto wide = [](const Tensor& value) { return ops::to(value, ScalarType::Double); };
  const FusedExperts experts{wide(call.experts.gate_up_tensor()), wide(call.experts.down_tensor()),
                             std::nullopt, std::nullopt};
  const Routed own = call.routed();
  const Routed routed{wide(own.hidden), own.index, wide(own.weight)};
  const Tensor found = contributions(experts, routed);
  CHECK((found.scalar_type() == ScalarType::Double));
  const auto exact = ops::to_vector<double>(found, ScalarType::Double);
  const Line expected = call.experts.contribution(call.experts.row_of(call.hidden, 1), 1, call.weight[2]);
  for (std::size_t i = 0; i < 4; ++i) CHECK(exact[2 * 4 + i] == doctest::Approx(expected[i]).epsilon(1e-12));
  const auto fused = fused_output(experts, routed, {1});
  CHECK((fused.output.scalar_type() == ScalarType::Double));
  CHECK(ops::to_vector<double>(*fused.contribution, ScalarType::Double)[0] ==
        doctest::Approx(expected[0]).epsilon(1e-12));
}

TEST_CASE("experts that don't exist and shapes that don't fit are refused") {
  const Call call;
  const Routed routed = call.routed();
  for (const std::int64_t expert : {-1, 5}) {
    std::vector<std::int64_t> index = kIndex;
    index[5] = expert;
    const Routed wrong{routed.hidden, integers(index, {kRows, kTopK}), routed.weight};
    CHECK_THROWS_AS(contributions(call.experts.fused(), wrong), std::invalid_argument);
    CHECK_THROWS_AS(fused_output(call.experts.fused(), wrong, {}), std::invalid_argument);
  }
  CHECK_THROWS_AS(contributions(call.experts.fused(),
                                {routed.hidden, routed.index, tensor(call.weight, {kRows * kTopK, 1})}),
                  std::invalid_argument);
  const FusedExperts swapped{call.experts.down_tensor(), call.experts.gate_up_tensor(), std::nullopt,
                             std::nullopt};
  CHECK_THROWS_AS(contributions(swapped, routed), std::invalid_argument);
  FusedExperts biased = call.experts.fused();
  biased.layout.biased = true;
  CHECK_THROWS_AS(contributions(biased, routed), std::invalid_argument);
}

TEST_CASE("half precision gives contributions in float32 and its output in its own dtype") {
  const Call call;
  const Routed own = call.routed();
  for (const ScalarType dtype : {ScalarType::BFloat16, ScalarType::Half}) {
    const auto half = [&](const Tensor& value) { return ops::to(value, dtype); };
    const FusedExperts experts{half(call.experts.gate_up_tensor()), half(call.experts.down_tensor()),
                               std::nullopt, std::nullopt};
    const auto found = fused_output(experts, {half(own.hidden), own.index, half(own.weight)}, {2, 0});
    CHECK((found.output.scalar_type() == dtype));
    CHECK((found.contribution->scalar_type() == ScalarType::Float));
    const double unit = dtype == ScalarType::Half ? 1e-3 : 8e-3, size = 1.0;
    const Numbers expected = call.expected(), parts = numbers(*found.contribution);
    CHECK(difference(line(parts, 0, 8), line(expected, 2, 8)) < 4 * unit * size);
    CHECK(difference(line(parts, 1, 8), line(expected, 0, 8)) < 4 * unit * size);
    // The output is the contributions' sum, rounded once.
    const Numbers whole = numbers(ops::to(found.output, ScalarType::Float));
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(std::abs(whole[2 * 4 + i] - (parts[i] + parts[4 + i])) <= unit * std::abs(whole[2 * 4 + i]));
    }
  }
}

TEST_CASE("transposed weights with zero biases and an interleaved gate are the same experts") {
  const Call call;
  const PlainExperts& plain = call.experts;
  const auto expected = fused_output(plain.fused(), call.routed(), {1});
  Numbers up(plain.gate_up.size()), down(plain.down.size());
  const auto count = static_cast<std::size_t>(plain.count), width = static_cast<std::size_t>(plain.width),
             inner = static_cast<std::size_t>(plain.inner);
  for (std::size_t expert = 0; expert < count; ++expert) {
    for (std::size_t i = 0; i < 2 * inner; ++i) {
      const std::size_t column = i < inner ? 2 * i : 2 * (i - inner) + 1;
      for (std::size_t j = 0; j < width; ++j) {
        up[(expert * width + j) * 2 * inner + column] = plain.gate_up[(expert * 2 * inner + i) * width + j];
      }
    }
    for (std::size_t i = 0; i < inner; ++i) {
      for (std::size_t j = 0; j < width; ++j) {
        down[(expert * inner + i) * width + j] = plain.down[(expert * width + j) * inner + i];
      }
    }
  }
  Layout layout;
  layout.transposed = layout.biased = layout.gate.interleaved = true;
  const std::vector<Tensor> weights{tensor(up, {plain.count, plain.width, 2 * plain.inner}),
                                    tensor(down, {plain.count, plain.inner, plain.width}),
                                    tensor(Numbers(count * 2 * inner), {plain.count, 2 * plain.inner}),
                                    tensor(Numbers(count * width), {plain.count, plain.width})};
  REQUIRE(weights.size() == layout.weights());
  const auto found = fused_output(FusedExperts::of(layout, weights.data()), call.routed(), {1});
  CHECK(difference(numbers(found.output), numbers(expected.output)) < 1e-6);
  CHECK(difference(numbers(*found.contribution), numbers(*expected.contribution)) < 1e-6);
}

TEST_CASE("gates clamp, shift and activate as they say") {
  const Tensor both = tensor({-2.0F, 0.5F, 3.0F, 1.0F, -4.0F, 0.25F}, {1, 6});  // gate, then up
  const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  const auto with = [&](Gate gate) { return numbers(gate(both)); };
  const Numbers silu = with({});
  CHECK(silu[2] == doctest::Approx(3.0 * sigmoid(3.0) * 0.25));
  Gate gate;
  gate.slope = 1.7;
  gate.limit = 2.5;
  gate.shift = 1.0;
  const Numbers limited = with(gate);
  CHECK(limited[0] == doctest::Approx(-2.0 * sigmoid(-3.4) * 2.0));
  CHECK(limited[1] == doctest::Approx(0.5 * sigmoid(0.85) * -1.5));
  CHECK(limited[2] == doctest::Approx(2.5 * sigmoid(4.25) * 1.25));
  gate = {};
  gate.activation = Activation::kReluSquared;
  gate.limit = 2.0;
  gate.limits_activated = true;
  const Numbers late = with(gate);
  CHECK(late[1] == doctest::Approx(0.25 * -2.0));
  CHECK(late[2] == doctest::Approx(2.0 * 0.25));
  gate = {};
  gate.gated = false;
  gate.activation = Activation::kGelu;
  CHECK(with(gate).size() == 6);
  CHECK(with(gate)[3] == doctest::Approx(0.841345));
}
