#include "moetrace/coalition/additivity.h"

namespace moetrace::coalition {

Additivity additivity(const ListedGame& game) {
  std::vector<std::size_t> single_columns;
  for (Mask left = game.grand(); left != 0; left &= left - 1) {
    single_columns.push_back(game.column(left & (~left + 1)));
  }
  const std::size_t grand_column = game.column(game.grand());
  Additivity result;
  for (std::int64_t index = 0; index < game.cases(); ++index) {
    const auto values = game.row(index);
    const double none = game.empty_value(index);
    double singles = 0;
    for (const std::size_t column : single_columns) singles += values[column] - none;
    const double grand = values[grand_column] - none;
    result.singles.push_back(singles);
    result.grand.push_back(grand);
    result.difference.push_back(grand - singles);
  }
  return result;
}

}  // namespace moetrace::coalition
