#include "moetrace/stats/ranks.h"

#include <stdexcept>

namespace moetrace::stats {

SelectedRanks rank_selected(const MatrixView& values, std::span<const std::uint8_t> active,
                            std::span<const std::int64_t> selected, Ties ties) {
  const auto cases = static_cast<std::size_t>(values.rows());
  const auto width = static_cast<std::size_t>(values.cols());
  if (active.size() != cases * width || selected.size() != cases) {
    throw std::invalid_argument(
        "values, the mask of active columns and the selected columns differ in shape");
  }
  SelectedRanks out{std::vector<double>(cases), std::vector<std::int64_t>(cases),
                    std::vector<std::int64_t>(cases)};
  for (std::size_t i = 0; i < cases; ++i) {
    if (selected[i] >= static_cast<std::int64_t>(width))
      throw std::invalid_argument("a selected column is out of range");
    const std::span<const std::uint8_t> usable = active.subspan(i * width, width);
    for (const std::uint8_t one : usable) out.candidates[i] += one != 0;
    if (selected[i] < 0 || usable[static_cast<std::size_t>(selected[i])] == 0 || out.candidates[i] < 2)
      continue;
    const auto row = static_cast<Eigen::Index>(i);
    const double own = values(row, selected[i]);
    std::int64_t better = 0;
    std::int64_t tied = -1;  // the selected one ties with itself
    for (std::size_t k = 0; k < width; ++k) {
      if (usable[k] == 0) continue;
      const double other = values(row, static_cast<Eigen::Index>(k));
      better += other > own;
      tied += other == own;
    }
    const double share = ties == Ties::ahead ? 1.0 : ties == Ties::midway ? 0.5 : 0.0;
    out.rank[i] = 1.0 + static_cast<double>(better) + share * static_cast<double>(tied);
    out.tied[i] = tied;
  }
  return out;
}

}  // namespace moetrace::stats
