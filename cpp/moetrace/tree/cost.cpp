#include "moetrace/tree/cost.h"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>

namespace moetrace::tree {

namespace {

using Part = std::span<const Fork>;

std::int64_t up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

Part part_of(const Runs& runs, std::int64_t begin, std::int64_t end) {
  if (begin < 0 || begin > end || end > static_cast<std::int64_t>(runs.size())) {
    throw std::invalid_argument("runs " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                                std::to_string(runs.size()));
  }
  return Part(runs).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
}

std::int64_t rows_of(const CaseShape& shape, Part runs, std::int64_t branches) {
  std::int64_t rows = shape.subject_start + (branches + 1) * shape.branch();
  for (const Fork& run : runs) rows += branches * shape.chain(run);
  return rows;
}

std::int64_t cost_of(const CaseShape& shape, Part runs, std::int64_t branches, std::int64_t layers,
                     Join join) {
  const std::int64_t rows = rows_of(shape, runs, branches);
  if (join == Join::kStart) return rows;
  std::int64_t absent = 0;
  for (const Fork& run : runs) absent += run.layer * shape.chain(run) * branches;
  return std::max(up(rows * layers - absent, layers), up(rows, 4));
}

}  // namespace

std::int64_t tree_rows(const CaseShape& shape, const Runs& runs, std::int64_t begin, std::int64_t end,
                       std::int64_t branches) {
  return rows_of(shape, part_of(runs, begin, end), branches);
}

std::int64_t tree_cost(const CaseShape& shape, const Runs& runs, std::int64_t branches, std::int64_t layers,
                       Join join) {
  return cost_of(shape, runs, branches, layers, join);
}

std::vector<std::pair<std::int64_t, std::int64_t>> cut(const CaseShape& shape, const Runs& runs,
                                                       std::int64_t branches, std::int64_t layers, Join join,
                                                       std::int64_t budget) {
  const std::int64_t prompt = cost_of(shape, {}, branches, layers, join);
  const std::int64_t allowed = std::max(budget, 2 * prompt);
  std::vector<std::pair<std::int64_t, std::int64_t>> parts;
  std::vector<std::pair<std::int64_t, std::int64_t>> open{{0, static_cast<std::int64_t>(runs.size())}};
  while (!open.empty()) {
    const auto [begin, end] = open.back();
    open.pop_back();
    const bool whole = budget < 1 || end - begin < 2;
    if (whole || cost_of(shape, part_of(runs, begin, end), branches, layers, join) <= allowed) {
      parts.emplace_back(begin, end);
      continue;
    }
    const std::int64_t middle = begin + (end - begin) / 2;
    open.emplace_back(middle, end);
    open.emplace_back(begin, middle);
  }
  return parts;
}

std::vector<std::int64_t> layer_rows(const std::vector<CaseShape>& cases, const Runs& runs,
                                     std::int64_t begin, std::int64_t end, std::int64_t branches,
                                     std::int64_t layers, Join join) {
  std::vector<Fork> forks;
  for (Fork run : part_of(runs, begin, end)) {
    for (run.draw = 0; run.draw < branches; ++run.draw) forks.push_back(run);
  }
  const Layout layout(cases, forks, branches, layers, join);
  std::vector<std::int64_t> rows;
  for (std::int64_t layer = 0; layer < layers; ++layer) rows.push_back(layout.rows_inside(layer));
  rows.push_back(layout.plan().rows);
  return rows;
}

}  // namespace moetrace::tree
