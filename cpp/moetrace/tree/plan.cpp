#include "moetrace/tree/plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace moetrace::tree {

namespace {

constexpr std::int64_t kClean = -1;

void check_forks(const std::vector<Fork>& forks, std::int64_t branches, std::int64_t layers,
                 std::int64_t places) {
  for (const Fork& fork : forks) {
    if (fork.layer < 0 || fork.layer >= layers) {
      throw std::invalid_argument("fork at layer " + std::to_string(fork.layer) + " of a model with " +
                                  std::to_string(layers) + " layers");
    }
    if (fork.draw < 0 || fork.draw >= branches) {
      throw std::invalid_argument("fork of noised branch " + std::to_string(fork.draw) + " of " +
                                  std::to_string(branches));
    }
    if (fork.skipped < 0) throw std::invalid_argument("a fork that skips fewer than no tokens");
    if (fork.place < 0 || fork.place >= places) {
      throw std::invalid_argument("fork at place " + std::to_string(fork.place) + " of " +
                                  std::to_string(places));
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
  for (std::int64_t position = shape.length - shape.chain(fork); position < shape.length; ++position) {
    const std::int64_t row = plan.fork_last(given) - (shape.length - 1 - position);
    const auto at = static_cast<std::size_t>(index * plan.rows + row);
    plan.position[at] = position;
    plan.branch[at] = fork.from_clean ? kClean : fork.draw;
    plan.fork[at] = given;
    plan.source[at] = where.row(position, plan.branch[at]);
    plan.clean_twin[at] = where.row(position, kClean);
    plan.noised_twin[at] = where.row(position, fork.draw);
  }
}

/// The longest chain of a fork in any case.
std::int64_t longest_chain(const std::vector<CaseShape>& cases, const Fork& fork) {
  std::int64_t longest = 0;
  for (const CaseShape& shape : cases) longest = std::max(longest, shape.chain(fork));
  return longest;
}

/// A padding row of a fork needs some base row to be copied from; any will do, since nothing reads it.
void fill_padding(Plan& plan) {
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    for (std::int64_t row = 0; row < plan.rows; ++row) {
      const auto at = static_cast<std::size_t>(index * plan.rows + row);
      plan.source[at] = row < plan.base_rows ? row : plan.base_rows - 1;
      plan.clean_twin[at] = plan.noised_twin[at] = row;
    }
  }
}

}  // namespace

Plan make_plan(const std::vector<CaseShape>& cases, const std::vector<Fork>& forks, std::int64_t branches,
               std::int64_t layers) {
  if (cases.empty()) throw std::invalid_argument("a batch needs at least one case");
  if (branches < 1) throw std::invalid_argument("a trace needs at least one noised branch");

  Plan plan;
  plan.cases = static_cast<std::int64_t>(cases.size());
  plan.branches_ = branches;
  for (const CaseShape& shape : cases) {
    check(shape);
    if (shape.places.size() != cases[0].places.size()) {
      throw std::invalid_argument("all cases of a batch must say where each place is");
    }
    plan.base_rows = std::max(plan.base_rows, base_rows_of(shape, branches));
  }
  check_forks(forks, branches, layers, static_cast<std::int64_t>(cases[0].places.size()));

  std::vector<std::int64_t> order(forks.size());  // of layers
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return forks[static_cast<std::size_t>(a)].layer < forks[static_cast<std::size_t>(b)].layer;
  });
  plan.fork_start_.resize(forks.size());
  plan.chains_.resize(forks.size());
  plan.rows_at_layer.assign(static_cast<std::size_t>(layers), 0);
  plan.rows = plan.base_rows;
  for (const std::int64_t which : order) {
    const auto given = static_cast<std::size_t>(which);
    plan.fork_start_[given] = plan.rows;
    plan.chains_[given] = longest_chain(cases, forks[given]);
    plan.rows += plan.chains_[given];
    plan.rows_at_layer[static_cast<std::size_t>(forks[given].layer)] = plan.rows - plan.base_rows;
  }
  std::int64_t before = 0;  // layers in which nothing is patched have the rows of those below them
  for (std::int64_t& rows : plan.rows_at_layer) rows = plan.base_rows + (before = std::max(before, rows));

  const auto cells = static_cast<std::size_t>(plan.cases * plan.rows);
  plan.position.assign(cells, 0);
  plan.source.assign(cells, 0);
  plan.clean_twin.assign(cells, 0);
  plan.noised_twin.assign(cells, 0);
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
