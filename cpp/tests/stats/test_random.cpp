#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <set>
#include <stdexcept>
#include <vector>

#include "moetrace/stats/philox.h"
#include "moetrace/stats/random.h"

using namespace moetrace::stats;

TEST_CASE("a word is a function of seed, purpose, stream and index") {
  const Stream stream(0x100000002ULL, Purpose::resample, 0x300000004ULL);
  const auto block = philox4x32({5, 4, 3, 1}, {2, 1});
  for (std::uint32_t k = 0; k < 4; ++k) CHECK(stream.word(20 + k) == block[k]);
  CHECK(stream.word(20, 7) == philox4x32({5, 4, 3, 1 + 256 * 7}, {2, 1})[0]);
}

TEST_CASE("draws in bulk are the draws one by one, whatever the number and the start") {
  const Stream stream(3, Purpose::sample, 9);
  for (const std::uint32_t n : {1U, 2U, 7U, 128U, 3'000'000'000U, 0xffffffffU}) {
    for (const std::size_t count : {0U, 1U, 5U, 64U}) {
      std::vector<std::uint32_t> bulk(count);
      stream.fill_below(n, bulk, 8);
      for (std::size_t i = 0; i < count; ++i) {
        CHECK(bulk[i] == stream.below(n, static_cast<std::uint32_t>(8 + i)));
        CHECK(bulk[i] < n);
      }
    }
  }
}

TEST_CASE("a draw in the uneven remainder is drawn again") {
  // 2^32 mod 3e9 is almost a third of 2^32, so that many of these draws need more than one attempt.
  const std::uint32_t n = 3'000'000'000U;
  const Stream stream(1, Purpose::sample, 0);
  int repeated = 0;
  for (std::uint32_t i = 0; i < 2000; ++i) {
    const std::uint64_t product = std::uint64_t{stream.word(i)} * n;
    repeated += stream.below(n, i) != static_cast<std::uint32_t>(product >> 32);
  }
  CHECK(repeated > 400);
  CHECK(repeated < 800);
}

TEST_CASE("a sample without replacement is distinct, reproducible and even") {
  CHECK(sample_without_replacement(10, 4, 0, 7) == sample_without_replacement(10, 4, 0, 7));
  CHECK(sample_without_replacement(10, 4, 0, 7) != sample_without_replacement(10, 4, 0, 8));
  CHECK(sample_without_replacement(5, 0, 0, 0).empty());
  std::array<int, 20> seen{};
  for (std::uint64_t stream = 0; stream < 6000; ++stream) {
    const auto pair = sample_without_replacement(5, 2, 11, stream);
    REQUIRE(pair[0] != pair[1]);
    ++seen[static_cast<std::size_t>(pair[0] * 4 + (pair[1] > pair[0] ? pair[1] - 1 : pair[1]))];
  }
  // 300 of each ordered pair expected, standard deviation 17.
  CHECK(*std::min_element(seen.begin(), seen.end()) > 220);
  CHECK(*std::max_element(seen.begin(), seen.end()) < 380);
  const auto all = sample_without_replacement(1000, 1000, 0, 0);
  CHECK(std::set<std::int64_t>(all.begin(), all.end()).size() == 1000);
  CHECK(sample_without_replacement(4'000'000'000, 3, 0, 0).size() == 3);
  CHECK_THROWS_AS(sample_without_replacement(3, 4, 0, 0), std::invalid_argument);
  CHECK_THROWS_AS(sample_without_replacement(-1, 0, 0, 0), std::invalid_argument);
}
