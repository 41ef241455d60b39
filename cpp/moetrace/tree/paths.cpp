#include "moetrace/tree/paths.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace moetrace::tree {

namespace {

/// Rows of one sequence by position.
using Tokens = std::map<std::int64_t, std::int64_t>;

/// One case: its base runs by branch (-1 for the clean one), and its forks.
struct CaseRuns {
  std::map<std::int64_t, Tokens> bases, forks;
};

CaseRuns runs_of(const Plan& plan, std::int64_t index, std::int64_t rows) {
  CaseRuns found;
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto at = static_cast<std::size_t>(index * plan.rows + row);
    if (plan.branch[at] == kPadding) continue;
    Tokens& own = plan.fork[at] >= 0 ? found.forks[plan.fork[at]] : found.bases[plan.branch[at]];
    own[plan.position[at]] = row;
  }
  // Noised runs share what stands before their first row.
  const Tokens& clean = found.bases.begin()->second;
  for (auto& [branch, own] : found.bases) {
    const std::int64_t first = own.begin()->first;
    own.insert(clean.begin(), clean.lower_bound(first));
  }
  return found;
}

class Writer {
 public:
  Writer(Paths& paths, std::int64_t cases) : paths_(paths) {
    paths_.place.assign(static_cast<std::size_t>(cases * paths_.rows), -1);
  }

  std::int64_t add(std::int64_t index, const Tokens& tokens, std::int64_t cut, std::int64_t origin) {
    const std::int64_t number = paths_.sequences();
    paths_.length.push_back(static_cast<std::int64_t>(tokens.size()));
    paths_.cut.push_back(cut);
    paths_.origin.push_back(origin < 0 ? number : origin);
    for (const auto& [position, row] : tokens) {
      const std::int64_t flat = index * paths_.rows + row;
      paths_.row.push_back(flat);
      std::int64_t& place = paths_.place[static_cast<std::size_t>(flat)];
      if (place < 0) place = number * paths_.longest + position;
    }
    const auto missing = static_cast<std::size_t>(paths_.longest) - tokens.size();
    paths_.row.insert(paths_.row.end(), missing, paths_.row.back());
    return number;
  }

 private:
  Paths& paths_;
};

}  // namespace

Paths make_paths(const Plan& plan, std::int64_t rows) {
  if (rows < plan.base_rows || rows > plan.rows) {
    throw std::invalid_argument("paths over " + std::to_string(rows) + " rows; a plan of " +
                                std::to_string(plan.base_rows) + " to " + std::to_string(plan.rows));
  }
  Paths paths;
  paths.rows = rows;
  std::vector<CaseRuns> runs;
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    runs.push_back(runs_of(plan, index, rows));
    const auto tokens = static_cast<std::int64_t>(runs.back().bases.begin()->second.size());
    paths.longest = std::max(paths.longest, tokens);
  }
  Writer writer(paths, plan.cases);
  std::vector<std::map<std::int64_t, std::int64_t>> numbers(runs.size());  // of base runs, by branch
  for (std::size_t index = 0; index < runs.size(); ++index) {
    for (const auto& [branch, tokens] : runs[index].bases) {
      numbers[index][branch] = writer.add(static_cast<std::int64_t>(index), tokens, 0, -1);
    }
  }
  paths.bases = paths.sequences();
  for (std::size_t index = 0; index < runs.size(); ++index) {
    const auto line = static_cast<std::int64_t>(index) * plan.rows;
    for (auto& [fork, tokens] : runs[index].forks) {
      const auto [cut, first] = *tokens.begin();
      const std::int64_t source = plan.source[static_cast<std::size_t>(line + first)];
      const std::int64_t branch = plan.branch[static_cast<std::size_t>(line + source)];
      const Tokens& base = runs[index].bases.at(branch);
      tokens.insert(base.begin(), base.lower_bound(cut));
      writer.add(static_cast<std::int64_t>(index), tokens, cut, numbers[index].at(branch));
    }
  }
  for (std::int64_t& place : paths.place) place = std::max<std::int64_t>(place, 0);
  return paths;
}

}  // namespace moetrace::tree
