#include "moetrace/tree/plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace moetrace::tree {

namespace {

constexpr std::int64_t kClean = -1;

void check_forks(const std::vector<Fork>& forks, std::int64_t branches, std::int64_t layers) {
  for (const Fork& fork : forks) {
    if (fork.layer < 0 || fork.layer >= layers) {
      throw std::invalid_argument("fork at layer " + std::to_string(fork.layer) + " of a model with " +
                                  std::to_string(layers) + " layers");
    }
    if (fork.branch < 0 || fork.branch >= branches) {
      throw std::invalid_argument("fork of noised branch " + std::to_string(fork.branch) + " of " +
                                  std::to_string(branches));
    }
  }
}

/// Rows of one case before the batch pads it.
std::int64_t base_rows_of(const CaseShape& shape, std::int64_t branches) {
  return shape.subject_start + (branches + 1) * shape.branch();
}

/// Where the tokens of one case stand: prefix and branches, shifted right by its padding.
class CaseRows {
 public:
  CaseRows(const CaseShape& shape, std::int64_t branches, std::int64_t base_rows)
      : shape_(shape),
        branches_(branches),
        base_rows_(base_rows),
        padding_(base_rows - base_rows_of(shape, branches)) {}

  /// Row of `position` in the clean (-1) or a noised branch (0, 1, …).
  std::int64_t row(std::int64_t position, std::int64_t branch) const {
    if (position < shape_.subject_start) return padding_ + position;
    if (position == shape_.length - 1) return base_rows_ - branches_ + branch;
    const std::int64_t body = shape_.branch() - 1;
    return padding_ + shape_.subject_start + (branch + 1) * body + (position - shape_.subject_start);
  }

 private:
  CaseShape shape_;
  std::int64_t branches_, base_rows_, padding_;
};

void fill_base(Plan& plan, std::int64_t index, const CaseShape& shape, const CaseRows& where) {
  const std::int64_t offset = index * plan.rows;
  for (std::int64_t branch = kClean; branch < plan.branches_; ++branch) {
    for (std::int64_t position = 0; position < shape.length; ++position) {
      const bool shared = position < shape.subject_start;
      if (shared && branch != kClean) continue;
      const auto at = static_cast<std::size_t>(offset + where.row(position, branch));
      plan.position[at] = position;
      plan.branch[at] = branch;
      plan.clean_twin[at] = where.row(position, kClean);
    }
  }
}

void fill_fork(Plan& plan, std::int64_t index, const CaseShape& shape, const CaseRows& where,
               std::int64_t given, const Fork& fork) {
  for (std::int64_t position = shape.patch_position; position < shape.length; ++position) {
    const std::int64_t row = plan.fork_last(given) - (shape.length - 1 - position);
    const auto at = static_cast<std::size_t>(index * plan.rows + row);
    plan.position[at] = position;
    plan.branch[at] = fork.branch;
    plan.fork[at] = given;
    plan.source[at] = where.row(position, fork.branch);
    plan.clean_twin[at] = where.row(position, kClean);
  }
}

/// A padding row of a fork needs some base row to be copied from; any will do, since nothing reads it.
void fill_padding(Plan& plan) {
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    for (std::int64_t row = 0; row < plan.rows; ++row) {
      const auto at = static_cast<std::size_t>(index * plan.rows + row);
      plan.source[at] = row < plan.base_rows ? row : plan.base_rows - 1;
      plan.clean_twin[at] = row;
    }
  }
}

}  // namespace

Plan make_plan(const std::vector<CaseShape>& cases, const std::vector<Fork>& forks, std::int64_t branches,
               std::int64_t layers) {
  if (cases.empty()) throw std::invalid_argument("a batch needs at least one case");
  if (branches < 1) throw std::invalid_argument("a trace needs at least one noised branch");
  check_forks(forks, branches, layers);

  Plan plan;
  plan.cases = static_cast<std::int64_t>(cases.size());
  plan.branches_ = branches;
  for (const CaseShape& shape : cases) {
    check(shape);
    plan.base_rows = std::max(plan.base_rows, base_rows_of(shape, branches));
    plan.chain = std::max(plan.chain, shape.chain());
  }
  plan.rows = plan.base_rows + static_cast<std::int64_t>(forks.size()) * plan.chain;

  std::vector<std::int64_t> order(forks.size());  // of layers
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return forks[static_cast<std::size_t>(a)].layer < forks[static_cast<std::size_t>(b)].layer;
  });
  plan.fork_start_.resize(forks.size());
  plan.rows_at_layer.assign(static_cast<std::size_t>(layers), plan.base_rows);
  for (std::size_t place = 0; place < forks.size(); ++place) {
    const auto given = static_cast<std::size_t>(order[place]);
    plan.fork_start_[given] = plan.base_rows + static_cast<std::int64_t>(place) * plan.chain;
    for (std::int64_t layer = forks[given].layer; layer < layers; ++layer) {
      plan.rows_at_layer[static_cast<std::size_t>(layer)] += plan.chain;
    }
  }

  const auto cells = static_cast<std::size_t>(plan.cases * plan.rows);
  plan.position.assign(cells, 0);
  plan.source.assign(cells, 0);
  plan.clean_twin.assign(cells, 0);
  plan.branch.assign(cells, kPadding);
  plan.fork.assign(cells, -1);
  fill_padding(plan);
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    const CaseShape& shape = cases[static_cast<std::size_t>(index)];
    const CaseRows where(shape, branches, plan.base_rows);
    fill_base(plan, index, shape, where);
    for (std::size_t given = 0; given < forks.size(); ++given) {
      fill_fork(plan, index, shape, where, static_cast<std::int64_t>(given), forks[given]);
    }
  }
  return plan;
}

}  // namespace moetrace::tree
