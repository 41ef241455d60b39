#include "moetrace/pass/pass.h"

// What a forward of a pass is given, and which of its rows are read in the end.

#include <algorithm>

namespace moetrace::pass {

std::vector<std::int64_t> Pass::input_ids() const {
  std::vector<std::int64_t> ids;
  const auto positions = position_ids();
  const std::int64_t rows = layout_.start_rows();
  for (std::size_t at = 0; at < positions.size(); ++at) {
    const Case& own = cases_[at / static_cast<std::size_t>(rows)];
    ids.push_back(own.tokens.at(static_cast<std::size_t>(positions[at])));
  }
  return ids;
}

std::vector<std::int64_t> Pass::position_ids() const {
  const tree::Plan& plan = layout_.plan();
  std::vector<std::int64_t> found;
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    const auto line = plan.position.begin() + index * plan.rows;
    found.insert(found.end(), line, line + layout_.start_rows());
  }
  return found;
}

std::vector<std::int64_t> Pass::final_rows() const {
  const tree::Plan& plan = layout_.plan();
  std::vector<std::int64_t> rows{plan.clean_last()};
  for (std::int64_t draw = 0; draw < job_.draws; ++draw) rows.push_back(plan.noised_last(draw));
  const auto forks = static_cast<std::int64_t>(runs_.size()) * job_.draws;
  for (std::int64_t fork = 0; fork < forks; ++fork) rows.push_back(plan.fork_last(fork));
  return rows;
}

std::vector<std::int64_t> Pass::last_rows(std::int64_t count) const {
  std::vector<std::int64_t> rows;
  for (std::int64_t index = 0; index < layout_.cases(); ++index) {
    const tree::CaseShape& shape = cases_[static_cast<std::size_t>(index)].shape;
    const auto positions = [&](auto row_at) {
      for (std::int64_t back = 0; back < count; ++back) {
        rows.push_back(row_at(std::max<std::int64_t>(shape.length - 1 - back, 0)));
      }
    };
    for (std::int64_t branch = -1; branch < job_.draws; ++branch) {
      positions([&](std::int64_t position) { return layout_.base_row(index, branch, position); });
    }
    for (std::size_t run = 0; run < runs_.size(); ++run) {
      const Patch& patch = runs_[run].patch;
      const std::int64_t first = shape.length - shape.chain(fork_of(runs_[run], 0));
      for (std::int64_t draw = 0; draw < job_.draws; ++draw) {
        positions([&](std::int64_t position) {
          if (position >= first)
            return layout_.row_of(index, fork(static_cast<std::int64_t>(run), draw), position);
          return layout_.base_row(index, patch.origin == Origin::kNoise ? -1 : draw, position);
        });
      }
    }
  }
  return rows;
}

}  // namespace moetrace::pass
