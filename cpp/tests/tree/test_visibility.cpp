#include <doctest/doctest.h>

#include <map>
#include <set>

#include "moetrace/tree/visibility.h"

using namespace moetrace::tree;

namespace {

/// A tree with explicit parents, walked upward: the plain meaning of "ancestor".
class ParentTree {
 public:
  ParentTree(const Plan& plan, const CaseShape& shape, const std::vector<Fork>& forks, std::int64_t index) {
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> base;  // (branch, position) -> row
    const auto offset = static_cast<std::size_t>(index * plan.rows);
    for (std::int64_t row = 0; row < plan.base_rows; ++row) {
      const auto at = offset + static_cast<std::size_t>(row);
      if (plan.branch[at] != -2) base[{plan.branch[at], plan.position[at]}] = row;
    }
    const auto on_branch = [&](std::int64_t branch, std::int64_t position) {
      return base.at({position < shape.subject_start ? -1 : branch, position});
    };
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> chains;
    for (std::int64_t row = plan.base_rows; row < plan.rows; ++row) {
      const auto at = offset + static_cast<std::size_t>(row);
      if (plan.branch[at] != -2) chains[{plan.fork[at], plan.position[at]}] = row;
    }
    for (const auto& [key, row] : base) {
      if (key.second > 0) parent_[row] = on_branch(key.first, key.second - 1);
    }
    for (const auto& [key, row] : chains) {
      const Fork& fork = forks[static_cast<std::size_t>(key.first)];
      if (key.second > shape.positions(fork.place).front()) {
        parent_[row] = chains.at({key.first, key.second - 1});
      } else if (key.second > 0) {
        parent_[row] = on_branch(fork.from_clean ? -1 : fork.draw, key.second - 1);
      }
    }
  }

  std::set<std::int64_t> path(std::int64_t row) const {
    std::set<std::int64_t> seen{row};
    for (auto at = parent_.find(row); at != parent_.end(); at = parent_.find(at->second))
      seen.insert(at->second);
    return seen;
  }

 private:
  std::map<std::int64_t, std::int64_t> parent_;
};

void compare(const std::vector<CaseShape>& shapes, const std::vector<Fork>& forks, std::int64_t branches) {
  const Plan plan = make_plan(shapes, forks, branches, 4);
  const auto cells = visibility(plan);
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    const ParentTree tree(plan, shapes[static_cast<std::size_t>(index)], forks, index);
    for (std::int64_t row = 0; row < plan.rows; ++row) {
      const auto path = tree.path(row);
      for (std::int64_t other = 0; other < plan.rows; ++other) {
        const auto at = static_cast<std::size_t>((index * plan.rows + row) * plan.rows + other);
        CAPTURE(index);
        CAPTURE(row);
        CAPTURE(other);
        CHECK(cells[at] == (path.contains(other) ? 1 : 0));
      }
    }
  }
}

}  // namespace

TEST_CASE("a row sees its path to the root and nothing else") {
  compare({{6, 2, 4, {{5}}}, {4, 1, 3, {{3}}}}, {{0, 0}, {2, 0}, {3, 0}}, 1);
}

TEST_CASE("so it is with several noised branches") {
  compare({{5, 0, 2, {{4}}}, {7, 3, 5, {{6}}}}, {{0, 0}, {0, 1}, {1, 2}}, 3);
}

TEST_CASE("and with chains, in the subject, after it, and in the prefix") {
  compare({{6, 2, 4, {{3}}}, {4, 1, 3, {{2}}}, {5, 2, 3, {{0}}}}, {{0, 0}, {1, 0}}, 1);
}

TEST_CASE("a subject of the whole prompt") { compare({{3, 0, 3, {{2}}}}, {{0, 0}}, 1); }

TEST_CASE("forks of several places and of either run, in the subject and before it") {
  compare({{6, 2, 4, {{5}, {2, 3}, {1}, {}}}, {4, 1, 3, {{3}, {1, 2}, {0}, {2}}}},
          {{0, 0, 1}, {0, 1, 1, true}, {3, 1, 2}, {1, 0, 3, true}, {2, 1, 0, true}}, 2);
}
