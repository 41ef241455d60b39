#include <doctest/doctest.h>

#include <set>
#include <stdexcept>

#include "moetrace/tree/paths.h"
#include "moetrace/tree/visibility.h"

using namespace moetrace::tree;

namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// What a row sees, in the order of positions: its path, by the rule that gives the masks.
std::vector<std::int64_t> seen_by(const Plan& plan, const std::vector<std::uint8_t>& cells,
                                  std::int64_t index, std::int64_t row) {
  std::vector<std::int64_t> path(at(plan.position[at(index * plan.rows + row)] + 1), -1);
  for (std::int64_t other = 0; other < plan.rows; ++other) {
    if (cells[at((index * plan.rows + row) * plan.rows + other)] == 0) continue;
    path[at(plan.position[at(index * plan.rows + other)])] = other;
  }
  return path;
}

void compare(const Plan& plan, std::int64_t rows) {
  const auto cells = visibility(plan);
  const Paths paths = make_paths(plan, rows);
  REQUIRE(paths.row.size() == at(paths.sequences() * paths.longest));
  REQUIRE(paths.place.size() == at(plan.cases * rows));
  CHECK(paths.bases == plan.cases * (plan.branches() + 1));
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    for (std::int64_t row = 0; row < rows; ++row) {
      if (plan.branch[at(index * plan.rows + row)] == kPadding) {
        CHECK(paths.place[at(index * rows + row)] == 0);
        continue;
      }
      const auto path = seen_by(plan, cells, index, row);
      const std::int64_t place = paths.place[at(index * rows + row)];
      const std::int64_t sequence = place / paths.longest;
      REQUIRE(place % paths.longest == static_cast<std::int64_t>(path.size()) - 1);
      for (std::size_t position = 0; position < path.size(); ++position) {
        CHECK(paths.row[at(sequence * paths.longest) + position] == index * rows + path[position]);
      }
      CHECK((sequence < paths.bases) == (row < plan.base_rows));
    }
  }
}

const std::vector<CaseShape> kShapes{{7, 2, 4, {{6}}}, {5, 0, 2, {{4}}}, {9, 4, 5, {{8}}}};

}  // namespace

TEST_CASE("a sequence holds what its rows see, in order") {
  const std::vector<Fork> forks{{2, 1}, {0, 0}, {3, 0}, {2, 0}};
  const Plan plan = make_plan(kShapes, forks, 2, 4);
  for (const std::int64_t rows : plan.rows_at_layer) compare(plan, rows);
  compare(plan, plan.base_rows);
  const std::vector<CaseShape> shapes{{6, 1, 3, {{3}, {0}, {}}}, {8, 2, 3, {{4, 6}, {1}, {7}}}};
  const std::vector<Fork> leaving{{2, 1, 1}, {0, 0, 2}, {3, 0, 0, true}, {2, 0, 1, true}, {1, 1, 0}};
  const Plan earlier = make_plan(shapes, leaving, 2, 4);
  for (const std::int64_t rows : earlier.rows_at_layer) compare(earlier, rows);
}

TEST_CASE("forks go on from the run that they leave, at the patched token") {
  const Plan plan = make_plan({{6, 1, 3, {{3}}}, {8, 2, 3, {{5}}}}, {{1, 1}, {0, 0, 0, true}}, 2, 2);
  const Paths paths = make_paths(plan, plan.rows);
  CHECK(paths.bases == 6);
  CHECK(paths.sequences() == 10);
  CHECK(paths.longest == 8);
  CHECK(std::vector<std::int64_t>(paths.length.begin(), paths.length.begin() + 6) ==
        std::vector<std::int64_t>{6, 6, 6, 8, 8, 8});
  const std::vector<std::int64_t> origins(paths.origin.begin() + 6, paths.origin.end());
  CHECK(origins == std::vector<std::int64_t>{2, 0, 5, 3});
  const std::vector<std::int64_t> cuts(paths.cut.begin() + 6, paths.cut.end());
  CHECK(cuts == std::vector<std::int64_t>{3, 3, 5, 5});
  for (std::int64_t sequence = 6; sequence < 10; ++sequence) {
    for (std::int64_t position = 0; position < paths.cut[at(sequence)]; ++position) {
      CHECK(paths.row[at(sequence * 8 + position)] ==
            paths.row[at(paths.origin[at(sequence)] * 8 + position)]);
    }
  }
}

TEST_CASE("behind its end a sequence repeats its last row, and every other row is in one once") {
  const Plan plan = make_plan(kShapes, {{0, 0}}, 1, 1);
  const Paths paths = make_paths(plan, plan.rows);
  for (std::int64_t sequence = 0; sequence < paths.sequences(); ++sequence) {
    const std::int64_t last = paths.row[at(sequence * paths.longest + paths.length[at(sequence)] - 1)];
    for (std::int64_t position = paths.length[at(sequence)]; position < paths.longest; ++position) {
      CHECK(paths.row[at(sequence * paths.longest + position)] == last);
    }
  }
  std::set<std::int64_t> places;
  std::size_t real = 0;
  for (std::size_t row = 0; row < plan.branch.size(); ++row) {
    if (plan.branch[row] == kPadding) continue;
    ++real;
    places.insert(paths.place[row]);
  }
  CHECK(places.size() == real);
}

TEST_CASE("paths are of the rows that can be there") {
  const Plan plan = make_plan(kShapes, {{0, 0}}, 1, 1);
  CHECK_THROWS_WITH_AS(make_paths(plan, plan.base_rows - 1), doctest::Contains("a plan of"),
                       std::invalid_argument);
  CHECK_THROWS_AS(make_paths(plan, plan.rows + 1), std::invalid_argument);
}
