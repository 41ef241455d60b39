#include "moetrace/tree/layout.h"

#include <stdexcept>
#include <string>

namespace moetrace::tree {

Layout::Layout(const std::vector<CaseShape>& cases, const std::vector<Fork>& forks, std::int64_t branches,
               std::int64_t layers, Join join)
    : plan_(make_plan(cases, forks, branches, layers)), join_(join) {
  shapes_ = cases;
  forks_ = forks;
}

std::int64_t Layout::start_rows() const noexcept {
  return join_ == Join::kStart ? plan_.rows : plan_.base_rows;
}

std::int64_t Layout::rows_behind(std::int64_t layer) const {
  return join_ == Join::kStart ? plan_.rows : plan_.rows_at_layer.at(static_cast<std::size_t>(layer));
}

std::int64_t Layout::rows_before(std::int64_t layer) const {
  return layer == 0 ? start_rows() : rows_behind(layer - 1);
}

std::int64_t Layout::rows_inside(std::int64_t layer) const {
  return join_ == Join::kAfterLayer ? rows_before(layer) : rows_behind(layer);
}

std::vector<std::int64_t> Layout::sources(std::int64_t begin, std::int64_t end) const {
  std::vector<std::int64_t> found;
  found.reserve(static_cast<std::size_t>(plan_.cases * (end - begin)));
  for (std::int64_t index = 0; index < plan_.cases; ++index) {
    const auto line = plan_.source.begin() + index * plan_.rows;
    found.insert(found.end(), line + begin, line + end);
  }
  return found;
}

std::vector<std::int64_t> Layout::forks(std::int64_t end) const {
  std::vector<std::int64_t> found;
  found.reserve(static_cast<std::size_t>(plan_.cases * end));
  for (std::int64_t index = 0; index < plan_.cases; ++index) {
    const auto line = plan_.fork.begin() + index * plan_.rows;
    found.insert(found.end(), line, line + end);
  }
  return found;
}

std::span<const std::int64_t> Layout::positions(std::int64_t index, std::int64_t fork) const {
  return shapes_.at(static_cast<std::size_t>(index)).patched(forks_.at(static_cast<std::size_t>(fork)));
}

std::int64_t Layout::row_of(std::int64_t index, std::int64_t fork, std::int64_t position) const {
  return plan_.fork_last(fork) - (shapes_.at(static_cast<std::size_t>(index)).length - 1 - position);
}

std::int64_t Layout::base_row(std::int64_t index, std::int64_t branch, std::int64_t position) const {
  const bool shared = position < shapes_.at(static_cast<std::size_t>(index)).subject_start;
  for (std::int64_t row = 0; row < plan_.base_rows; ++row) {
    const auto at = static_cast<std::size_t>(index * plan_.rows + row);
    if (plan_.position[at] == position && plan_.branch[at] == (shared ? -1 : branch)) return row;
  }
  throw std::out_of_range("position " + std::to_string(position) + " of case " + std::to_string(index));
}

std::int64_t Layout::origin(std::int64_t index, std::int64_t row) const {
  return plan_.source.at(static_cast<std::size_t>(index * plan_.rows + row));
}

std::int64_t Layout::clean_twin(std::int64_t index, std::int64_t row) const {
  return plan_.clean_twin.at(static_cast<std::size_t>(index * plan_.rows + row));
}

std::int64_t Layout::noised_twin(std::int64_t index, std::int64_t row) const {
  return plan_.noised_twin.at(static_cast<std::size_t>(index * plan_.rows + row));
}

}  // namespace moetrace::tree
