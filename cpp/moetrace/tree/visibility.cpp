#include "moetrace/tree/visibility.h"

namespace moetrace::tree {

namespace {

constexpr std::int64_t kClean = -1;

struct Node {
  std::int64_t branch, fork, position;
};

/// First patched position of each fork of one case: its chain ends at the final token.
std::int64_t first_position(const Plan& plan, std::int64_t index, std::int64_t given) {
  for (std::int64_t row = plan.fork_start(given); row <= plan.fork_last(given); ++row) {
    const auto at = static_cast<std::size_t>(index * plan.rows + row);
    if (plan.branch[at] != kPadding) return plan.position[at];
  }
  return 0;
}

/// Whether `other` is an ancestor of `node`; `first` is the first position of the node's fork.
/// The prefix counts as clean and lies before every subject, so it is on everybody's path;
/// `prefix` says whether `other` belongs to it.
bool is_ancestor(const Node& node, const Node& other, std::int64_t first, bool prefix) {
  if (other.branch == kPadding || other.position >= node.position) return false;
  if (other.fork >= 0) return other.fork == node.fork;
  if (node.fork >= 0 && other.position >= first) return false;
  return prefix || other.branch == node.branch;
}

}  // namespace

std::vector<std::uint8_t> visibility(const Plan& plan) {
  std::vector<std::uint8_t> cells(static_cast<std::size_t>(plan.cases * plan.rows * plan.rows), 0);
  for (std::int64_t index = 0; index < plan.cases; ++index) {
    const auto node_at = [&](std::int64_t row) {
      const auto at = static_cast<std::size_t>(index * plan.rows + row);
      return Node{plan.branch[at], plan.fork[at], plan.position[at]};
    };
    // The prefix ends where the first noised row stands.
    std::int64_t subject_start = -1;
    for (std::int64_t row = 0; row < plan.base_rows; ++row) {
      const Node node = node_at(row);
      if (node.branch == 0 && (subject_start < 0 || node.position < subject_start)) {
        subject_start = node.position;
      }
    }
    for (std::int64_t row = 0; row < plan.rows; ++row) {
      const Node node = node_at(row);
      std::uint8_t* line = cells.data() + (index * plan.rows + row) * plan.rows;
      line[row] = 1;
      if (node.branch == kPadding) continue;
      const std::int64_t first = node.fork >= 0 ? first_position(plan, index, node.fork) : 0;
      const auto see = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t column = begin; column < end; ++column) {
          const Node other = node_at(column);
          const bool prefix = other.branch == kClean && other.fork < 0 && other.position < subject_start;
          if (is_ancestor(node, other, first, prefix)) line[column] = 1;
        }
      };
      see(0, plan.base_rows);
      if (node.fork >= 0) see(plan.fork_start(node.fork), plan.fork_last(node.fork) + 1);
    }
  }
  return cells;
}

}  // namespace moetrace::tree
