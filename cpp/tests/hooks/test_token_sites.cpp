#include <doctest/doctest.h>

#include <memory>

#include "../tensors.h"
#include "moetrace/hooks/token_sites.h"

using namespace moetrace;
using namespace moetrace::hooks;
using namespace moetrace::testing;

using Kind = Tokens::Kind;

TEST_CASE("a tap keeps what passes, and the model goes on with copies") {
  const auto forward = std::make_shared<Forward>(Tokens{});
  Tap tap("block of layer 1", forward);
  CHECK(tap.fire(Step::kRead, {}).empty());
  forward->begin(2, 3, 0, {});
  const Numbers given = varied(12);
  for (const Shape& shape : {Shape{2, 3, 2}, Shape{6, 2}}) {
    tap.reset();
    forward->begin(2, 3, 0, {});
    const Tensor value = tensor(given, shape);
    const auto passed = tap.fire(Step::kValue, {value});
    REQUIRE(passed.size() == 1);
    CHECK(ops::shape_of(passed[0]) == shape);
    CHECK(numbers(passed[0]) == given);
    Tensor written = passed[0];
    torch::stable::zero_(written);  // in place, as a model may do
    const auto found = tap.fire(Step::kRead, {});
    REQUIRE(found.size() == 1);
    CHECK(ops::shape_of(found[0]) == Shape{2, 3, 2});
    CHECK(numbers(found[0]) == given);
  }
}

TEST_CASE("forwards of the same sequences lie one behind the other, others begin anew") {
  const auto forward = std::make_shared<Forward>(Tokens{Kind::kColumns, {1, 3, 4}});
  Tap tap("block of layer 1", forward);
  const Numbers first = varied(6), second = varied(4, 0.3), third = varied(6, 0.9);
  forward->begin(1, 3, 0, {});
  CHECK(tap.fire(Step::kValue, {tensor(first, {1, 3, 2})}).empty());  // part is read, nothing replaced
  forward->begin(1, 2, 3, {});
  tap.fire(Step::kValue, {tensor(second, {2, 2})});
  const Tensor found = tap.fire(Step::kRead, {})[0];
  CHECK(ops::shape_of(found) == Shape{1, 3, 2});
  CHECK(numbers(found) == Numbers{first[2], first[3], second[0], second[1], second[2], second[3]});
  CHECK(tap.steps() == std::vector<std::int64_t>{1, 2});
  CHECK(tap.fired() == 2);
  forward->begin(1, 3, 0, {});
  tap.fire(Step::kValue, {tensor(third, {1, 3, 2})});
  CHECK(numbers(tap.fire(Step::kRead, {})[0]) == line(third, 1, 2));
}

TEST_CASE("what was chosen already is kept as it comes") {
  const auto forward = std::make_shared<Forward>(Tokens{Kind::kColumns, {2}});
  Tap tap("contributions of layer 1", forward);
  forward->begin(2, 3, 0, {});
  CHECK(tap.fire(Step::kKeep, {tensor(varied(12), {2, 1, 2, 3})}).empty());
  CHECK(ops::shape_of(tap.fire(Step::kRead, {})[0]) == Shape{2, 1, 2, 3});
}

TEST_CASE("a place that is passed twice in one forward can't be read until new sequences begin") {
  const auto forward = std::make_shared<Forward>(Tokens{});
  Tap tap("block of layer 1", forward);
  const Tensor value = tensor(varied(4), {1, 2, 2});
  forward->begin(1, 2, 0, {});
  tap.fire(Step::kValue, {value});
  CHECK_FALSE(tap.repeated());
  CHECK(tap.fire(Step::kValue, {value}).empty());  // the model goes on as it is
  CHECK(tap.repeated());
  CHECK_THROWS_WITH_AS(tap.fire(Step::kRead, {}),
                       "block of layer 1: a module that ran more than once in a forward", Failure);
  forward->begin(1, 2, 2, {});
  tap.fire(Step::kValue, {value});
  CHECK(tap.repeated());
  forward->begin(1, 2, 0, {});
  tap.fire(Step::kValue, {value});
  CHECK(ops::shape_of(tap.fire(Step::kRead, {})[0]) == Shape{1, 2, 2});
}

TEST_CASE("a patch gives what is there and takes what stands in its place, of several values at once") {
  const auto forward = std::make_shared<Forward>(Tokens{Kind::kColumns, {1}});
  TokenPatch patch("routing of layer 1", forward);
  forward->begin(2, 2, 0, {});
  const Tensor index = integers({5, 6, 7, 8, 1, 2, 3, 4}, {4, 2}), weight = tensor(varied(8), {4, 2});
  const auto present = patch.fire(Step::kValue, {index, weight});
  REQUIRE(present.size() == 2);
  CHECK(numbers(present[0]) == Numbers{7, 8, 3, 4});
  CHECK(patch.fired() == 0);
  const auto found = patch.fire(
      Step::kWrite, {index, weight, integers({0, 9, 9, 0}, {2, 1, 2}), tensor({1, 2, 3, 4}, {2, 1, 2})});
  CHECK(numbers(found[0]) == Numbers{5, 6, 0, 9, 1, 2, 9, 0});
  CHECK(line(numbers(found[1]), 1, 2) == Numbers{1, 2});
  CHECK(line(numbers(found[1]), 2, 2) == line(varied(8), 2, 2));
  CHECK(patch.fired() == 1);
  forward->begin(2, 1, 2, {});  // none of its tokens is in this one
  CHECK(patch.fire(Step::kValue, {integers({1, 2}, {2, 1})}).empty());
  CHECK(patch.fired() == 1);
}
