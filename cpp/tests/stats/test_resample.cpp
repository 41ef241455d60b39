#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "moetrace/stats/resample.h"

using namespace moetrace::stats;

namespace {

void check_sums(const Resampler& resampler, std::size_t count) {
  const std::size_t rows = resampler.rows();
  AlignedBuffer<double> block(padded_rows(rows) * kLanes);
  AlignedBuffer<double> table;
  std::fill(block.data(), block.data() + padded_rows(rows) * kLanes, 0.0);
  for (std::size_t i = 0; i < rows * kLanes; ++i) block.data()[i] = static_cast<double>(i * 37 % 101) - 50.0;
  const ResamplePlan plan(resampler, 5, 3, count, 2);
  std::vector<double> sizes;
  AlignedBuffer<double> sums(sums_of(count));
  for (std::size_t first = 0; first < count; first += ResamplePlan::kPart) {
    const Slice slice{first, std::min(ResamplePlan::kPart, count - first)};
    plan.weighted_sums(slice, block.data(), table, sums.data() + first * kLanes);
    sizes.insert(sizes.end(), plan.sizes(slice).begin(), plan.sizes(slice).end());
  }
  std::vector<std::uint32_t> counts(rows);
  for (std::size_t b = 0; b < count; ++b) {
    CHECK(sizes[b] == resampler.draw(5, 3 + b, counts));
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      double expected = 0.0;
      for (std::size_t row = 0; row < rows; ++row)
        expected += counts[row] * block.data()[row * kLanes + lane];
      REQUIRE(sums.data()[b * kLanes + lane] == expected);  // whole numbers: exact
    }
  }
}

}  // namespace

TEST_CASE("sums from tables are the sums of what was drawn") {
  for (const std::size_t cases : {1U, 2U, 5U, 128U, 129U, 300U}) check_sums(Resampler::of_cases(cases), 301);
  const std::vector<std::int32_t> labels = {0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3};
  check_sums(Resampler::of_clusters(labels, 4), 97);
  check_sums(Resampler::two_stage(labels, 4), 97);
}

TEST_CASE("a resample holds as many draws as there are cases, or clusters") {
  const std::vector<std::int32_t> labels = {0, 1, 1, 2, 2, 2};
  std::vector<std::uint32_t> counts(6);
  CHECK(Resampler::of_cases(6).draw(0, 0, counts) == 6.0);
  CHECK(std::accumulate(counts.begin(), counts.end(), 0U) == 6);
  const Resampler clusters = Resampler::of_clusters(labels, 3);
  CHECK_FALSE(clusters.constant_size());
  counts.resize(3);
  const double size = clusters.draw(0, 0, counts);
  CHECK(std::accumulate(counts.begin(), counts.end(), 0U) == 3);
  CHECK(size == counts[0] * 1.0 + counts[1] * 2.0 + counts[2] * 3.0);
  CHECK(Resampler::of_clusters(std::vector<std::int32_t>{0, 0, 1, 1}, 2).constant_size());
}

TEST_CASE("two stages draw a cluster's cases from that cluster alone") {
  const std::vector<std::int32_t> labels = {0, 0, 0, 1, 1};
  const Resampler resampler = Resampler::two_stage(labels, 2);
  std::vector<std::uint32_t> counts(5);
  for (std::uint64_t b = 0; b < 50; ++b) {
    const double size = resampler.draw(1, b, counts);
    const std::uint32_t first = counts[0] + counts[1] + counts[2];
    const std::uint32_t second = counts[3] + counts[4];
    CHECK(first % 3 == 0);
    CHECK(second % 2 == 0);
    CHECK(first / 3 + second / 2 == 2);
    CHECK(size == first + second);
  }
}
