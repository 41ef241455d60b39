#include <doctest/doctest.h>

#include <memory>

#include "moetrace/experts/contribution_tap.h"
#include "moetrace/hooks/failure.h"
#include "plain_experts.h"

using namespace moetrace;
using namespace moetrace::experts;
using namespace moetrace::testing;
using moetrace::hooks::Failure;
using moetrace::hooks::Forward;
using moetrace::hooks::Step;
using moetrace::hooks::Tokens;
using Kind = Tokens::Kind;

namespace {

constexpr std::int64_t kRows = 4, kTopK = 2, kWidth = 4;  // 2 sequences of 2 tokens
const std::vector<std::int64_t> kIndex{3, 0, 1, 3, 4, 2, 0, 3};

struct Call {
  PlainExperts experts;
  Numbers hidden = varied(kRows * kWidth, 0.2), weight{0.6F, 0.4F, 0.9F, 0.1F, 0.5F, 0.5F, 0.7F, 0.3F};
  Tensor index = integers(kIndex, {kRows, kTopK});

  std::vector<Tensor> given() const {
    return {tensor(hidden, {kRows, kWidth}), index, tensor(weight, {kRows, kTopK})};
  }
  std::vector<Tensor> left() const {
    auto found = given();
    found.push_back(experts.module(found[0], found[1], found[2]));
    found.push_back(experts.gate_up_tensor());
    found.push_back(experts.down_tensor());
    return found;
  }
  Numbers pair(std::size_t at) const {
    Numbers found;
    const Line row = experts.row_of(hidden, static_cast<std::int64_t>(at) / kTopK);
    for (const double own : experts.contribution(row, kIndex[at], weight[at])) {
      found.push_back(static_cast<float>(own));
    }
    return found;
  }
};

std::shared_ptr<Forward> forward_of(Tokens tokens) {
  const auto found = std::make_shared<Forward>(std::move(tokens));
  found->begin(2, 2, 0, {});
  return found;
}

}  // namespace

TEST_CASE("contributions of chosen tokens are those of plain loops (equation 5)") {
  const Call call;
  ContributionTap tap("contributions of layer 1", forward_of({Kind::kColumns, {1}}), -1);
  const auto found = tap.fire(Step::kLeave, call.left());
  REQUIRE(found.size() == 1);
  CHECK(ops::shape_of(found[0]) == Shape{2, 1, kTopK, kWidth});
  Numbers expected;
  for (const std::size_t at : {2, 3, 6, 7}) {
    const Numbers own = call.pair(at);
    expected.insert(expected.end(), own.begin(), own.end());
  }
  CHECK(difference(numbers(found[0]), expected) < 1e-6);
}

TEST_CASE("a module that the compiled routines don't know computes the pairs itself") {
  const Call call;
  ContributionTap tap("contributions of layer 1", forward_of({}), -1);
  const auto pairs = tap.fire(Step::kPairs, call.given());
  REQUIRE(pairs.size() == 3);
  auto left = call.left();
  left.resize(4);
  left.push_back(call.experts.module(pairs[0], pairs[1], pairs[2]));
  const auto by_module = tap.fire(Step::kLeave, left);
  const auto by_core = tap.fire(Step::kLeave, call.left());
  CHECK(difference(numbers(by_module[0]), numbers(by_core[0])) < 1e-6);
  // Where the weights are given and every expert has some, nothing need be computed.
  auto known = call.given();
  known.push_back(call.experts.gate_up_tensor());
  known.push_back(call.experts.down_tensor());
  CHECK(tap.fire(Step::kPairs, known).empty());
  known[1] = integers({3, 0, 1, 3, 4, 2, 5, 3}, {kRows, kTopK});  // an identity expert, perhaps
  CHECK(tap.fire(Step::kPairs, known).size() == 3);
}

TEST_CASE("one expert contributes where it is routed to, and nothing elsewhere") {
  const Call call;
  ContributionTap tap("L01E003", forward_of({Kind::kColumns, {1, 0}}), 3);
  const auto found = tap.fire(Step::kLeave, call.left());
  REQUIRE(found.size() == 2);
  CHECK(ops::shape_of(found[0]) == Shape{2, 2, kWidth});
  CHECK(numbers(found[1]) == Numbers{1, 1, 1, 0});  // rows 1, 0, 3, 2
  const Numbers value = numbers(found[0]);
  CHECK(difference(line(value, 0, kWidth), call.pair(3)) < 1e-6);
  CHECK(difference(line(value, 1, kWidth), call.pair(0)) < 1e-6);
  CHECK(difference(line(value, 2, kWidth), call.pair(7)) < 1e-6);
  CHECK(line(value, 3, kWidth) == Numbers(kWidth, 0.0F));

  ContributionTap never("L01E001", forward_of({Kind::kColumns, {0}}), 1);
  CHECK(never.fire(Step::kPairs, call.given()).empty());
  const auto nothing = never.fire(Step::kLeave, call.left());
  CHECK(numbers(nothing[0]) == Numbers(2 * kWidth, 0.0F));
  CHECK(numbers(nothing[1]) == Numbers{0, 0});
}

TEST_CASE("contributions that don't sum to the experts' output are a failure") {
  const Call call;
  auto left = call.left();
  left[3] = ops::mul(left[3], left[3]);
  for (const std::int64_t expert : {-1, 3}) {
    ContributionTap tap("layer 1", forward_of({}), expert);
    CHECK_THROWS_AS(tap.fire(Step::kLeave, left), Failure);
  }
  ContributionTap tap("layer 1", forward_of({}), -1);
  auto few = call.given();
  few[1] = integers({1, 2}, {1, 2});
  CHECK_THROWS_AS(tap.fire(Step::kPairs, few), Failure);  // not a row for each token
}
