#include <doctest/doctest.h>

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
  const FusedExperts experts{wide(call.experts.gate_up_tensor()), wide(call.experts.down_tensor())};
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
  CHECK_THROWS_AS(contributions({call.experts.down_tensor(), call.experts.gate_up_tensor()}, routed),
                  std::invalid_argument);
}
