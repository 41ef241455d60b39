#include "moetrace/tree/cost.h"

#include <algorithm>
#include <numeric>
#include <span>

namespace moetrace::tree {

namespace {

std::int64_t up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

std::int64_t cost_of(const CaseShape& shape, std::span<const std::int64_t> patched, std::int64_t branches,
                     std::int64_t layers, Join join) {
  const std::int64_t rows = tree_rows(shape, static_cast<std::int64_t>(patched.size()), branches);
  if (join == Join::kStart) return rows;
  const std::int64_t below = std::accumulate(patched.begin(), patched.end(), std::int64_t{0});
  const std::int64_t absent = below * shape.chain() * branches;
  return std::max(up(rows * layers - absent, layers), up(rows, 4));
}

}  // namespace

std::int64_t tree_rows(const CaseShape& shape, std::int64_t forks, std::int64_t branches) {
  return shape.subject_start + (branches + 1) * shape.branch() + forks * branches * shape.chain();
}

std::int64_t tree_cost(const CaseShape& shape, const std::vector<std::int64_t>& patched,
                       std::int64_t branches, std::int64_t layers, Join join) {
  return cost_of(shape, patched, branches, layers, join);
}

std::vector<std::pair<std::int64_t, std::int64_t>> cut(const CaseShape& shape,
                                                       const std::vector<std::int64_t>& patched,
                                                       std::int64_t branches, std::int64_t layers, Join join,
                                                       std::int64_t budget) {
  const std::int64_t prompt = cost_of(shape, {}, branches, layers, join);
  const std::int64_t allowed = std::max(budget, 2 * prompt);
  std::vector<std::pair<std::int64_t, std::int64_t>> parts;
  std::vector<std::pair<std::int64_t, std::int64_t>> open{{0, static_cast<std::int64_t>(patched.size())}};
  while (!open.empty()) {
    const auto [begin, end] = open.back();
    open.pop_back();
    const std::span<const std::int64_t> part(patched.data() + begin, static_cast<std::size_t>(end - begin));
    if (budget < 1 || end - begin < 2 || cost_of(shape, part, branches, layers, join) <= allowed) {
      parts.emplace_back(begin, end);
      continue;
    }
    const std::int64_t middle = begin + (end - begin) / 2;
    open.emplace_back(middle, end);
    open.emplace_back(begin, middle);
  }
  return parts;
}

std::vector<std::int64_t> layer_rows(const std::vector<CaseShape>& cases,
                                     const std::vector<std::int64_t>& patched, std::int64_t branches,
                                     std::int64_t layers, Join join) {
  std::vector<Fork> forks;
  for (const std::int64_t layer : patched) {
    for (std::int64_t branch = 0; branch < branches; ++branch) forks.push_back({layer, branch});
  }
  const Layout layout(cases, forks, branches, layers, join);
  std::vector<std::int64_t> rows;
  for (std::int64_t layer = 0; layer < layers; ++layer) rows.push_back(layout.rows_inside(layer));
  rows.push_back(layout.plan().rows);
  return rows;
}

}  // namespace moetrace::tree
