#include <doctest/doctest.h>

#include "moetrace/tree/cost.h"
#include "moetrace/tree/layout.h"

using namespace moetrace::tree;

namespace {

// Two prompts whose patched token is the last; forks at layers 2, 0 and 2 of three.
const std::vector<CaseShape> kCases{{5, 1, 3, {{4}, {2, 4}, {}}}, {4, 1, 2, {{3}, {3}, {0}}}};
const std::vector<Fork> kForks{{2, 0}, {0, 0}, {2, 0}};

Layout layout(Join join) { return {kCases, kForks, 1, 3, join}; }

}  // namespace

TEST_CASE("rows at each layer, by where forks join") {
  const std::int64_t base = layout(Join::kStart).plan().base_rows;
  const Layout after = layout(Join::kAfterLayer), before = layout(Join::kBeforeLayer);
  CHECK(after.start_rows() == base);
  CHECK(after.rows_inside(0) == base);
  CHECK(after.rows_behind(0) == base + 1);
  CHECK(after.rows_inside(2) == base + 1);
  CHECK(after.rows_behind(2) == base + 3);
  CHECK(before.rows_before(0) == base);
  CHECK(before.rows_inside(0) == base + 1);
  CHECK(before.rows_inside(1) == base + 1);
  CHECK(before.rows_before(2) == base + 1);
  CHECK(before.rows_inside(2) == base + 3);
  const Layout start = layout(Join::kStart);
  for (std::int64_t layer = 0; layer < 3; ++layer) CHECK(start.rows_inside(layer) == base + 3);
  CHECK(start.start_rows() == base + 3);
}

TEST_CASE("a fork's patched row goes on from the noised row at the patched position") {
  const Layout own = layout(Join::kBeforeLayer);
  for (std::int64_t index = 0; index < 2; ++index) {
    for (std::int64_t fork = 0; fork < 3; ++fork) {
      REQUIRE(own.positions(index, fork).size() == 1);
      const std::int64_t row = own.row_of(index, fork, own.positions(index, fork)[0]);
      CHECK(own.origin(index, row) == own.plan().noised_last(0));
      CHECK(own.noised_twin(index, row) == own.plan().noised_last(0));
      CHECK(own.clean_twin(index, row) == own.plan().clean_last());
    }
  }
  CHECK(own.sources(0, 2) == std::vector<std::int64_t>{0, 1, 0, 1});
}

TEST_CASE("a case is cut into parts in order, within the budget or of one run") {
  const CaseShape shape{6, 2, 4, {{5}, {1}}};
  Runs patched(20);
  for (std::size_t run = 0; run < 20; ++run) patched[run].place = static_cast<std::int64_t>(run % 3 == 0);
  const std::int64_t prompt = tree_cost(shape, {}, 1, 3, Join::kBeforeLayer);
  for (const std::int64_t budget : {1, 25, 1000}) {
    std::int64_t next = 0;
    for (const auto& [begin, end] : cut(shape, patched, 1, 3, Join::kBeforeLayer, budget)) {
      CHECK(begin == next);
      next = end;
      const Runs part(patched.begin() + begin, patched.begin() + end);
      const std::int64_t cost = tree_cost(shape, part, 1, 3, Join::kBeforeLayer);
      CHECK((end - begin == 1 || cost <= std::max(budget, 2 * prompt)));
    }
    CHECK(next == 20);
  }
  CHECK(cut(shape, patched, 1, 3, Join::kBeforeLayer, 0).size() == 1);
  CHECK(cut(shape, {}, 1, 3, Join::kBeforeLayer, 1) ==
        std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 0}});
}
