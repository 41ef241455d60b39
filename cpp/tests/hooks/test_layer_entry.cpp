#include <doctest/doctest.h>

#include "../tensors.h"
#include "moetrace/hooks/layer_entry.h"

using namespace moetrace;
using namespace moetrace::hooks;
using namespace moetrace::testing;

namespace {

// Two cases of three rows each; one fork of each joins, as a copy of row 2 and of row 1.
constexpr std::int64_t kCases = 2, kRows = 3, kWidth = 2;
const std::vector<std::int64_t> kJoining{2, 1}, kEvery{0, 1, 2, 2, 0, 1, 2, 1};

LayerEntry entry() { return {"forks that join at layer 1", kCases, kRows, kJoining, kEvery}; }

Trouble trouble_of(LayerEntry& site, Step step, const Tensor& value) {
  try {
    site.fire(step, {value});
  } catch (const Failure& failure) {
    return failure.trouble();
  }
  FAIL("no failure");
  return Trouble::kShape;
}

}  // namespace

TEST_CASE("hidden states get the joining rows behind those of their case") {
  auto site = entry();
  CHECK(site.joins());
  const Numbers given = varied(kCases * kRows * kWidth);
  const auto found = site.fire(Step::kValue, {tensor(given, {kCases, kRows, kWidth})});
  CHECK(ops::shape_of(found.at(0)) == Shape{kCases, kRows + 1, kWidth});
  const Numbers lines = numbers(found[0]);
  for (std::int64_t at = 0; at < kCases; ++at) {
    for (std::int64_t row = 0; row <= kRows; ++row) {
      const std::int64_t source = kEvery[static_cast<std::size_t>(at * (kRows + 1) + row)];
      CHECK(line(lines, at * (kRows + 1) + row, kWidth) == line(given, at * kRows + source, kWidth));
    }
  }
  CHECK(site.fired() == 1);
}

TEST_CASE("masks are cut to the rows that are there; lines follow the rows that they belong to") {
  auto site = entry();
  const Numbers wide = varied(kCases * 5 * 5);
  const auto mask = site.fire(Step::kMask, {tensor(wide, {kCases, 1, 5, 5})}).at(0);
  CHECK(ops::shape_of(mask) == Shape{kCases, 1, 4, 4});
  for (std::int64_t at = 0; at < kCases * 16; ++at) {
    const std::int64_t own = at / 16, row = at % 16 / 4, column = at % 4;
    CHECK(numbers(mask)[static_cast<std::size_t>(at)] ==
          wide[static_cast<std::size_t>(own * 25 + row * 5 + column)]);
  }
  // Angles of one line for all cases, and behind an axis of sections.
  const Numbers angles = varied(2 * kRows * kWidth, 0.5);
  const auto shared = site.fire(Step::kPerRow, {tensor(line(angles, 0, 6), {1, kRows, kWidth})}).at(0);
  const auto sections = site.fire(Step::kPerRow, {tensor(angles, {2, 1, kRows, kWidth})}).at(0);
  CHECK(ops::shape_of(shared) == Shape{kCases, 4, kWidth});
  CHECK(ops::shape_of(sections) == Shape{2, kCases, 4, kWidth});
  for (std::int64_t at = 0; at < 8; ++at) {
    const std::int64_t row = kEvery[static_cast<std::size_t>(at)];
    CHECK(line(numbers(shared), at, kWidth) == line(angles, row, kWidth));
    CHECK(line(numbers(sections), at, kWidth) == line(angles, row, kWidth));
    CHECK(line(numbers(sections), 8 + at, kWidth) == line(angles, kRows + row, kWidth));
  }
  CHECK(site.fired() == 0);  // only hidden states count as the layer's call
}

TEST_CASE("hidden states of several streams grow likewise") {
  auto site = entry();
  const Numbers given = varied(kCases * kRows * 2 * kWidth);
  const auto found = site.fire(Step::kValue, {tensor(given, {kCases, kRows, 2, kWidth})}).at(0);
  CHECK(ops::shape_of(found) == Shape{kCases, kRows + 1, 2, kWidth});
  CHECK(line(numbers(found), 3, 2 * kWidth) == line(given, 2, 2 * kWidth));
  CHECK(line(numbers(found), 7, 2 * kWidth) == line(given, kRows + 1, 2 * kWidth));
}

TEST_CASE("keys of an earlier layer are completed by those of the rows that were copied") {
  auto site = entry();
  constexpr std::int64_t kHeads = 2;
  const Numbers keys = varied(kCases * kHeads * kRows * kWidth);
  const auto found = site.fire(Step::kHeads, {tensor(keys, {kCases, kHeads, kRows, kWidth})}).at(0);
  CHECK(ops::shape_of(found) == Shape{kCases, kHeads, kRows + 1, kWidth});
  for (std::int64_t own = 0; own < kCases * kHeads; ++own) {
    for (std::int64_t row = 0; row <= kRows; ++row) {
      const std::int64_t source = kEvery[static_cast<std::size_t>(own / kHeads * (kRows + 1) + row)];
      CHECK(line(numbers(found), own * (kRows + 1) + row, kWidth) ==
            line(keys, own * kRows + source, kWidth));
    }
  }
  // Those of a layer that had all rows stay as they are; a scale for each row is one head.
  CHECK(ops::shape_of(site.fire(Step::kHeads, {tensor(varied(16), {kCases, 1, 4, kWidth})}).at(0)) ==
        Shape{kCases, 1, 4, kWidth});
  CHECK(ops::shape_of(site.fire(Step::kHeads, {tensor(varied(3), {1, 1, kRows, 1})}).at(0)) ==
        Shape{kCases, 1, 4, 1});
  CHECK(trouble_of(site, Step::kHeads, tensor(varied(20), {kCases, 1, 5, kWidth})) == Trouble::kCannotJoin);
}

TEST_CASE("chosen keys follow a fork to its own rows") {
  // One case: base rows 0 to 2, a fork of rows 3 and 4 in the place of 1 and 2, another of row 5 for 2.
  LayerEntry site("forks", 1, 3, {}, {0, 1, 2, 1, 2, 2}, {-1, -1, -1, 7, 7, 8});
  const Tensor given = integers({0, 0, 1, 0, 2, 1}, {1, 3, 2});
  const auto found = site.fire(Step::kChosen, {given}).at(0);
  CHECK(ops::to_vector<std::int64_t>(found, ScalarType::Long) ==
        std::vector<std::int64_t>{0, 0, 1, 0, 2, 1, 3, 0, 4, 3, 5, 1});
  // Where the first fork has joined already its lines stay.
  const Tensor later = integers({0, 0, 1, 0, 2, 1, 0, 3, 0, 4}, {1, 5, 2});
  CHECK(ops::to_vector<std::int64_t>(site.fire(Step::kChosen, {later}).at(0), ScalarType::Long) ==
        std::vector<std::int64_t>{0, 0, 1, 0, 2, 1, 0, 3, 0, 4, 5, 1});
  CHECK(trouble_of(site, Step::kChosen, integers({0, 0}, {1, 2, 1})) == Trouble::kCannotJoin);
  CHECK_THROWS_AS(LayerEntry("forks", 1, 3, {}, {0, 1, 2, 2}, {-1}), std::invalid_argument);
}

TEST_CASE("what isn't understood sends the engine to the next way of joining") {
  auto site = entry();
  CHECK(trouble_of(site, Step::kValue, tensor(varied(12), {6, 2})) == Trouble::kCannotJoin);
  CHECK(trouble_of(site, Step::kValue, tensor(varied(18), {3, 3, 2})) == Trouble::kCannotJoin);
  CHECK(trouble_of(site, Step::kMask, tensor(varied(6), {2, 3})) == Trouble::kCannotJoin);
  CHECK(trouble_of(site, Step::kPerRow, tensor(varied(10), {1, 5, 2})) == Trouble::kCannotJoin);
}
