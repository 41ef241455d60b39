#include <doctest/doctest.h>

#include <stdexcept>
#include <thread>
#include <vector>

#include "../tensors.h"
#include "moetrace/hooks/failure.h"
#include "moetrace/hooks/forward.h"

using namespace moetrace;
using namespace moetrace::hooks;
using namespace moetrace::testing;

namespace {

using Rows = std::vector<std::int64_t>;
using Kind = Tokens::Kind;

/// Chosen rows of a forward of 2 x 4 tokens behind `past` others.
Rows chosen(Tokens tokens, std::int64_t past = 0, const Rows& last = {}) {
  Forward forward(std::move(tokens));
  forward.begin(2, 4, past, last);
  return forward.rows().rows();
}

}  // namespace

TEST_CASE("tokens count over the whole sequence, negative ones from the end of the forward") {
  CHECK(chosen({}) == Rows{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(chosen({Kind::kColumns, {2, 0}}) == Rows{2, 0, 6, 4});
  CHECK(chosen({Kind::kColumns, {-1, 1}}) == Rows{3, 1, 7, 5});
  CHECK(chosen({Kind::kColumns, {5, 1, -4}}, 3) == Rows{2, 0, 6, 4});  // 1 was in an earlier forward
  CHECK(chosen({Kind::kRows, {0, 3, 2, 1}, 2}) == Rows{0, 3, 6, 5});
  CHECK(chosen({Kind::kLast}) == Rows{3, 7});
  CHECK(chosen({Kind::kLast}, 0, {1, 3}) == Rows{1, 7});
}

TEST_CASE("tokens that aren't there are an error, or are found at the end") {
  Forward before({Kind::kColumns, {-5}});
  CHECK_THROWS_AS(before.begin(1, 4, 0, {}), std::out_of_range);
  CHECK_FALSE(before.running());
  before.begin(1, 4, 1, {});  // the first of five
  CHECK(before.chosen() == 0);
  Forward twice({Kind::kColumns, {3, -1}});
  CHECK_THROWS_AS(twice.begin(1, 4, 0, {}), std::invalid_argument);
  Forward rows({Kind::kRows, {1, 2}, 2});
  CHECK_THROWS_AS(rows.begin(3, 4, 0, {}), std::invalid_argument);
  Forward uneven({Kind::kRows, {1, 6}, 2});
  CHECK_THROWS_AS(uneven.begin(2, 4, 0, {}), std::invalid_argument);
  CHECK_THROWS_AS(Forward({Kind::kRows, {1, 2, 3}, 2}), std::invalid_argument);

  Forward later({Kind::kColumns, {9, 2, 5, -1}});
  later.begin(1, 4, 0, {});
  CHECK(later.unreached() == Rows{5, 9});
  later.begin(1, 3, 4, {});
  CHECK(later.unreached() == Rows{9});
  CHECK(later.longest() == 7);
}

TEST_CASE("a forward goes on with the sequences of the one before it, or begins new ones") {
  Forward forward({});
  forward.begin(2, 4, 0, {});
  CHECK(forward.sequence() == 1);
  forward.begin(2, 1, 4, {});
  CHECK(forward.sequence() == 1);
  forward.begin(2, 1, 4, {});  // a cache that was cut back
  CHECK(forward.sequence() == 2);
  forward.begin(3, 1, 5, {});  // other sequences
  CHECK(forward.sequence() == 3);
  forward.begin(3, 6, 0, {});
  CHECK(forward.sequence() == 4);
  CHECK(forward.number() == 5);
}

TEST_CASE("a forward runs in its own thread") {
  Forward forward({});
  CHECK_FALSE(forward.running());
  forward.begin(1, 2, 0, {});
  bool here = true, elsewhere = false;
  std::thread([&] {
    here = forward.running();
    elsewhere = forward.running_elsewhere();
  }).join();
  CHECK(forward.running());
  CHECK_FALSE(forward.running_elsewhere());
  CHECK_FALSE(here);
  CHECK(elsewhere);
  forward.end();
  CHECK_FALSE(forward.running());
}

TEST_CASE("rows are read and replaced in batches and in flat values alike") {
  const Numbers given = varied(8 * 3), other = varied(4 * 3, 0.4);
  Forward forward({Kind::kColumns, {3, 1}});
  forward.begin(2, 4, 0, {});
  const Rows rows{3, 1, 7, 5};
  Numbers expected = given;
  for (std::size_t at = 0; at < 4; ++at) {
    for (std::size_t i = 0; i < 3; ++i) {
      expected[static_cast<std::size_t>(rows[at]) * 3 + i] = other[at * 3 + i];
    }
  }
  for (const Shape& shape : {Shape{2, 4, 3}, Shape{8, 3}}) {
    const Tensor value = tensor(given, shape);
    const Tensor found = forward.chosen_of(value, "own");
    CHECK(ops::shape_of(found) == Shape{2, 2, 3});
    for (std::int64_t at = 0; at < 4; ++at) {
      CHECK(line(numbers(found), at, 3) == line(given, rows[static_cast<std::size_t>(at)], 3));
    }
    const Tensor whole = forward.with_chosen(value, tensor(other, {2, 2, 3}), "own");
    CHECK(ops::shape_of(whole) == shape);
    CHECK(numbers(whole) == expected);
    CHECK(numbers(value) == given);
    CHECK_THROWS_AS(forward.with_chosen(value, tensor(other, {4, 3}), "own"), Failure);
  }
  CHECK_THROWS_WITH_AS(
      forward.by_token(tensor(varied(9), {3, 3}), "block of layer 2"),
      doctest::Contains("block of layer 2: expected a value for each of 2 x 4 tokens, found a tensor of "
                        "shape (3, 3); a model that leaves out tokens"),
      Failure);
}
