#include "moetrace/hooks/layer_entry.h"

#include <algorithm>
#include <utility>

namespace moetrace::hooks {

LayerEntry::LayerEntry(std::string name, std::int64_t cases, std::int64_t start_rows,
                       std::vector<std::int64_t> joining, std::vector<std::int64_t> every,
                       std::vector<std::int64_t> forks)
    : Site(std::move(name)),
      cases_(cases),
      start_rows_(start_rows),
      joining_(std::move(joining)),
      every_(std::move(every)),
      forks_(std::move(forks)) {
  if (!forks_.empty() && forks_.size() != every_.size()) {
    throw std::invalid_argument(this->name() + ": a fork is needed for every row");
  }
}

std::vector<Tensor> LayerEntry::apply(Step step, const std::vector<Tensor>& given) {
  const Tensor& value = given.at(0);
  switch (step) {
    case Step::kMask:
      return {mask(value)};
    case Step::kPerRow:
      return {lines(value)};
    case Step::kHeads:
      return {behind_heads(value)};
    case Step::kChosen:
      return {chosen(value)};
    default:
      count();
      return {grown(value)};
  }
}

Tensor LayerEntry::grown(const Tensor& hidden) const {
  if (hidden.dim() < 3 || hidden.size(0) != cases_) {  // (cases, rows, width), or with an axis of streams
    throw Failure(Trouble::kCannotJoin, "hidden states of shape " + shape_text(hidden));
  }
  if (!joins()) return hidden;
  return ops::cat({hidden, rows_of_cases(hidden, cases_, joining_)}, 1);
}

Tensor LayerEntry::mask(const Tensor& value) const {
  if (value.dim() == 4) {
    const Tensor part = ops::narrow(ops::narrow(value, 2, 0, rows()), 3, 0, rows());
    return torch::stable::contiguous(part);
  }
  if (rows() == start_rows_) return value;
  throw Failure(Trouble::kCannotJoin, "an attention mask that isn't 4-D");
}

Tensor LayerEntry::lines(const Tensor& value) const {
  if (rows() == start_rows_) return value;
  const auto fits = [&](std::int64_t axis) {
    return value.dim() > axis + 1 && (value.size(axis) == 1 || value.size(axis) == cases_) &&
           value.size(axis + 1) == start_rows_;
  };
  if (fits(0)) return rows_of_cases(value, cases_, every_);
  if (fits(1)) {  // rotary angles of time, height and width
    std::vector<Tensor> sections;
    sections.reserve(static_cast<std::size_t>(value.size(0)));
    for (std::int64_t section = 0; section < value.size(0); ++section) {
      sections.push_back(rows_of_cases(torch::stable::select(value, 0, section), cases_, every_));
    }
    return ops::stack(sections);
  }
  throw Failure(Trouble::kCannotJoin, "a per-row input of shape " + shape_text(value));
}

/// (cases, rows inside the layer, …) from (cases or 1, as many as there were, …).
Tensor LayerEntry::completed(const Tensor& value) const {
  std::vector<std::int64_t> from(every_);
  for (std::size_t at = 0; at < from.size(); ++at) {
    const auto row = static_cast<std::int64_t>(at) % rows();
    if (row < value.size(1)) from[at] = row;
  }
  return rows_of_cases(value, cases_, from);
}

Tensor LayerEntry::behind_heads(const Tensor& value) const {
  const bool fits = value.dim() == 4 && (value.size(0) == 1 || value.size(0) == cases_) &&
                    value.size(2) >= start_rows_ && value.size(2) <= rows();
  if (!fits) throw Failure(Trouble::kCannotJoin, "keys or values of shape " + shape_text(value));
  if (value.size(2) == rows()) return value;
  return torch::stable::contiguous(
      torch::stable::transpose(completed(torch::stable::transpose(value, 1, 2)), 1, 2));
}

/// The row of a row's own fork, not behind it, that stands in the place of a base row; else the base row.
std::int64_t LayerEntry::in_fork(std::size_t row, std::int64_t base) const {
  const std::int64_t fork = forks_.empty() ? -1 : forks_[row];
  if (fork < 0) return base;
  const std::size_t first = row - row % static_cast<std::size_t>(rows());
  for (std::size_t at = row + 1; at > first && forks_[at - 1] == fork; --at) {
    if (every_[at - 1] == base) return static_cast<std::int64_t>(at - 1 - first);
  }
  return base;
}

Tensor LayerEntry::chosen(const Tensor& value) const {
  const bool fits =
      value.dim() == 3 && value.size(0) == cases_ && value.size(1) >= start_rows_ && value.size(1) <= rows();
  if (!fits) throw Failure(Trouble::kCannotJoin, "chosen keys of shape " + shape_text(value));
  const std::int64_t there = value.size(1), count = value.size(2);
  if (there == rows()) return value;
  auto numbers = ops::to_vector<std::int64_t>(completed(value), ScalarType::Long);
  for (std::size_t row = 0; row < every_.size(); ++row) {
    if (static_cast<std::int64_t>(row) % rows() < there) continue;
    const auto line = numbers.begin() + static_cast<std::ptrdiff_t>(row) * count;
    std::transform(line, line + count, line, [&](std::int64_t base) { return in_fork(row, base); });
  }
  const Tensor found = ops::from_vector(numbers, {cases_, rows(), count}, ScalarType::Long);
  return ops::to(ops::to_device(found, value), value.scalar_type());
}

}  // namespace moetrace::hooks
