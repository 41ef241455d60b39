#include "moetrace/hooks/layer_entry.h"

#include <utility>

namespace moetrace::hooks {

LayerEntry::LayerEntry(std::string name, std::int64_t cases, std::int64_t start_rows,
                       std::vector<std::int64_t> joining, std::vector<std::int64_t> every)
    : Site(std::move(name)),
      cases_(cases),
      start_rows_(start_rows),
      joining_(std::move(joining)),
      every_(std::move(every)) {}

std::vector<Tensor> LayerEntry::apply(Step step, const std::vector<Tensor>& given) {
  const Tensor& value = given.at(0);
  switch (step) {
    case Step::kMask:
      return {mask(value)};
    case Step::kPerRow:
      return {lines(value)};
    default:
      count();
      return {grown(value)};
  }
}

Tensor LayerEntry::grown(const Tensor& hidden) const {
  if (hidden.dim() != 3 || hidden.size(0) != cases_) {
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

}  // namespace moetrace::hooks
