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

TEST_CASE("what isn't understood sends the engine to the next way of joining") {
  auto site = entry();
  CHECK(trouble_of(site, Step::kValue, tensor(varied(12), {6, 2})) == Trouble::kCannotJoin);
  CHECK(trouble_of(site, Step::kValue, tensor(varied(18), {3, 3, 2})) == Trouble::kCannotJoin);
  CHECK(trouble_of(site, Step::kMask, tensor(varied(6), {2, 3})) == Trouble::kCannotJoin);
  CHECK(trouble_of(site, Step::kPerRow, tensor(varied(10), {1, 5, 2})) == Trouble::kCannotJoin);
}
