#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

#include "moetrace/stats/ranks.h"

using namespace moetrace::stats;

TEST_CASE("ranks among the active, with ties on either side") {
  Matrix values(4, 4);
  values << 3, 1, 2, 9,  //
      2, 2, 2, 1,        //
      5, 0, 0, 0,        //
      1, 2, 3, 4;
  const std::vector<std::uint8_t> active = {1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1};
  const std::vector<std::int64_t> selected = {0, 1, 0, 0};
  const auto worst = rank_selected(view_of(values), active, selected, Ties::ahead);
  CHECK(worst.rank == std::vector<double>{1, 3, 0, 0});  // alone in the third case, inactive in the fourth
  CHECK(worst.tied == std::vector<std::int64_t>{0, 2, 0, 0});
  CHECK(worst.candidates == std::vector<std::int64_t>{3, 4, 1, 3});
  CHECK(rank_selected(view_of(values), active, selected, Ties::midway).rank[1] == 2.0);
  CHECK(rank_selected(view_of(values), active, selected, Ties::behind).rank[1] == 1.0);
  const std::vector<std::int64_t> outside = {0, 1, 4, 0};
  CHECK_THROWS_AS(rank_selected(view_of(values), active, outside, Ties::ahead), std::invalid_argument);
}
