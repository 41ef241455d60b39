#include <doctest/doctest.h>

#include <algorithm>
#include <stdexcept>

#include "moetrace/tree/packing.h"

using moetrace::tree::pack;
using Batches = std::vector<std::vector<std::int64_t>>;

TEST_CASE("items of like size go together and stay within the budget") {
  CHECK(pack({5, 3, 4, 3}, 10) == Batches{{1, 3}, {2, 0}});
  CHECK(pack({5, 3, 4, 3}, 9) == Batches{{1, 3}, {2}, {0}});
}

TEST_CASE("an item above the budget stands alone") { CHECK(pack({50, 2, 2}, 4) == Batches{{1, 2}, {0}}); }

TEST_CASE("every item once, each batch within the budget") {
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < 97; ++i) rows.push_back(1 + (i * 37) % 23);
  for (const std::int64_t budget : {1, 7, 40, 1000}) {
    std::vector<int> seen(rows.size(), 0);
    for (const auto& batch : pack(rows, budget)) {
      std::int64_t longest = 0;
      for (const auto item : batch) {
        ++seen[static_cast<std::size_t>(item)];
        longest = std::max(longest, rows[static_cast<std::size_t>(item)]);
      }
      CHECK((batch.size() == 1 || static_cast<std::int64_t>(batch.size()) * longest <= budget));
    }
    CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  }
}

TEST_CASE("nothing to pack, and what can't be packed") {
  CHECK(pack({}, 4).empty());
  CHECK_THROWS_AS(pack({1}, 0), std::invalid_argument);
  CHECK_THROWS_AS(pack({0}, 4), std::invalid_argument);
}
