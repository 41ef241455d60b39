#include <doctest/doctest.h>

#include <set>
#include <stdexcept>

#include "moetrace/tree/plan.h"

using namespace moetrace::tree;

namespace {

const std::vector<CaseShape> kTwo = {{6, 2, 4, {{5}}}, {4, 1, 3, {{3}}}};

std::int64_t cell(const Plan& plan, const std::vector<std::int64_t>& cells, std::int64_t index,
                  std::int64_t row) {
  return cells.at(static_cast<std::size_t>(index * plan.rows + row));
}

}  // namespace

TEST_CASE("rows of a batch: prefix once, clean and noised branches, then forks") {
  const Plan plan = make_plan(kTwo, {{0, 0}, {2, 0}}, 1, 3);
  CHECK(plan.base_rows == 2 + 4 + 4);  // the longer case: prefix 2, two branches of 4
  CHECK(plan.chain(0) == 1);
  CHECK(plan.rows == 12);
  CHECK(plan.rows_at_layer == std::vector<std::int64_t>{11, 11, 12});
  CHECK(plan.clean_last() == 8);
  CHECK(plan.noised_last(0) == 9);
  CHECK(plan.fork_last(0) == 10);
  CHECK(plan.fork_last(1) == 11);
}

TEST_CASE("final tokens and forks stand at the same row in every case") {
  const Plan plan = make_plan(kTwo, {{1, 0}}, 1, 2);
  const std::int64_t last[] = {5, 3};
  for (std::int64_t index = 0; index < 2; ++index) {
    CHECK(cell(plan, plan.position, index, plan.clean_last()) == last[index]);
    CHECK(cell(plan, plan.branch, index, plan.clean_last()) == -1);
    CHECK(cell(plan, plan.position, index, plan.noised_last(0)) == last[index]);
    CHECK(cell(plan, plan.branch, index, plan.noised_last(0)) == 0);
    CHECK(cell(plan, plan.position, index, plan.fork_last(0)) == last[index]);
    CHECK(cell(plan, plan.source, index, plan.fork_last(0)) == plan.noised_last(0));
    CHECK(cell(plan, plan.clean_twin, index, plan.fork_last(0)) == plan.clean_last());
  }
}

TEST_CASE("every token of every branch has exactly one row") {
  const std::int64_t branches = 3;
  const Plan plan = make_plan(kTwo, {{0, 2}, {0, 0}}, branches, 1);
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    const CaseShape& shape = kTwo[static_cast<std::size_t>(index)];
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    std::int64_t padding = 0;
    for (std::int64_t row = 0; row < plan.base_rows; ++row) {
      const auto branch = cell(plan, plan.branch, index, row);
      if (branch == -2) {
        ++padding;
      } else {
        CHECK(seen.emplace(branch, cell(plan, plan.position, index, row)).second);
      }
    }
    const auto expected = shape.subject_start + (branches + 1) * shape.branch();
    CHECK(static_cast<std::int64_t>(seen.size()) == expected);
    CHECK(padding == plan.base_rows - expected);
  }
}

TEST_CASE("forks are ordered by layer, and keep the index they were given") {
  const Plan plan = make_plan({{4, 1, 2, {{3}}}}, {{2, 0}, {0, 0}, {1, 0}}, 1, 3);
  CHECK(plan.fork_start(1) == plan.base_rows);
  CHECK(plan.fork_start(2) == plan.base_rows + 1);
  CHECK(plan.fork_start(0) == plan.base_rows + 2);
}

TEST_CASE("a patch before the final token forks a chain, padded on the left in shorter cases") {
  const Plan plan = make_plan({{6, 2, 4, {{3}}}, {4, 1, 3, {{2}}}}, {{0, 0}}, 1, 1);
  CHECK(plan.chain(0) == 3);
  CHECK(cell(plan, plan.position, 0, plan.fork_start(0)) == 3);
  CHECK(cell(plan, plan.branch, 1, plan.fork_start(0)) == -2);
  CHECK(cell(plan, plan.position, 1, plan.fork_start(0) + 1) == 2);
  CHECK(cell(plan, plan.position, 1, plan.fork_last(0)) == 3);
}

TEST_CASE("each fork has the chain of its own place, and none where no case has it") {
  // Places: the last token, the first two of the subject, one that only the second case has, one of nobody.
  const Plan plan = make_plan({{6, 2, 4, {{5}, {2, 3}, {}, {}}}, {4, 1, 3, {{3}, {1, 2}, {2}, {}}}},
                              {{1, 0, 1}, {0, 0, 0}, {1, 0, 3}, {1, 0, 2, true}}, 1, 2);
  CHECK(plan.chain(0) == 4);
  CHECK(plan.chain(1) == 1);
  CHECK(plan.chain(2) == 0);
  CHECK(plan.chain(3) == 2);
  CHECK(plan.rows_at_layer == std::vector<std::int64_t>{plan.base_rows + 1, plan.base_rows + 7});
  CHECK(cell(plan, plan.position, 0, plan.fork_start(0)) == 2);
  CHECK(cell(plan, plan.branch, 1, plan.fork_start(0)) == kPadding);
  CHECK(cell(plan, plan.position, 1, plan.fork_start(0) + 1) == 1);
  for (std::int64_t row = plan.fork_start(3); row <= plan.fork_last(3); ++row) {
    CHECK(cell(plan, plan.branch, 0, row) == kPadding);
    CHECK(cell(plan, plan.branch, 1, row) == -1);
  }
}

TEST_CASE("a fork goes on from the run that it leaves") {
  const Plan plan = make_plan({{5, 1, 3, {{2}}}}, {{0, 1}, {0, 1, 0, true}}, 2, 1);
  for (const bool from_clean : {false, true}) {
    for (std::int64_t position = 2; position < 5; ++position) {
      const std::int64_t row = plan.fork_start(from_clean ? 1 : 0) + position - 2;
      const std::int64_t clean = cell(plan, plan.clean_twin, 0, row);
      const std::int64_t noised = cell(plan, plan.noised_twin, 0, row);
      CHECK(cell(plan, plan.source, 0, row) == (from_clean ? clean : noised));
      CHECK(cell(plan, plan.branch, 0, row) == (from_clean ? -1 : 1));
      CHECK(cell(plan, plan.branch, 0, clean) == -1);
      CHECK(cell(plan, plan.branch, 0, noised) == 1);
      CHECK(cell(plan, plan.position, 0, clean) == position);
      CHECK(cell(plan, plan.position, 0, noised) == position);
    }
  }
}

TEST_CASE("a fork that skips tokens of its place begins behind them") {
  // Two places: all tokens, and the first two of the subject.
  const std::vector<CaseShape> cases = {{5, 4, 5, {{0, 1, 2, 3, 4}, {1, 2}}}, {3, 2, 3, {{0, 1, 2}, {0, 1}}}};
  const Plan plan = make_plan(
      cases,
      {{0, 0, 0, true}, {0, 0, 0, true, 2}, {0, 0, 0, true, 4}, {0, 0, 1, true, 1}, {0, 0, 1, true, 2}}, 1,
      1);
  const std::int64_t chains[] = {5, 3, 1, 3, 0};
  for (std::int64_t fork = 0; fork < 5; ++fork) CHECK(plan.chain(fork) == chains[fork]);
  CHECK(cell(plan, plan.position, 0, plan.fork_start(1)) == 2);
  CHECK(cell(plan, plan.position, 0, plan.fork_start(3)) == 2);
  CHECK(cell(plan, plan.position, 1, plan.fork_last(1)) == 2);  // its third token is its last
  CHECK(cell(plan, plan.branch, 1, plan.fork_start(1)) == kPadding);
  CHECK(cell(plan, plan.branch, 1, plan.fork_last(2)) == kPadding);  // it has no fifth
  CHECK(cases[0].patched({0, 0, 0, true, 3}).size() == 2);
  CHECK(cases[1].patched({0, 0, 0, true, 3}).empty());
}

TEST_CASE("what doesn't fit is refused") {
  CHECK_THROWS_AS(make_plan({{4, 1, 2, {{3}}}}, {{0, 0, 0, true, -1}}, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_plan({}, {}, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{4, 1, 2, {{3}}}}, {}, 0, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{4, 1, 2, {{3}}}}, {{1, 0}}, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{4, 1, 2, {{3}}}}, {{0, 1}}, 1, 1), std::invalid_argument);
  CHECK_THROWS_WITH_AS(make_plan({{4, 1, 2, {{3}}}}, {{0, 0, 1}}, 1, 1), "fork at place 1 of 1",
                       std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{4, 1, 2, {{3}}}, {4, 1, 2, {}}}, {}, 1, 1), std::invalid_argument);
  CHECK_THROWS_WITH_AS(make_plan({{4, 1, 2, {{3, 2}}}}, {}, 1, 1), doctest::Contains("must ascend"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(make_plan({{4, 2, 2, {{3}}}}, {}, 1, 1),
                       "subject span [2, 2) is not inside a prompt of 4 tokens", std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{4, 1, 5, {{3}}}}, {}, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{4, 1, 2, {{4}}}}, {}, 1, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_plan({{0, 0, 1, {{0}}}}, {}, 1, 1), std::invalid_argument);
}
