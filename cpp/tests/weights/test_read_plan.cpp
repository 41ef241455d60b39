#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <vector>

#include "moetrace/weights/file.h"
#include "moetrace/weights/read_plan.h"

using namespace moetrace::weights;

namespace {

constexpr std::uint64_t kMost = 4 * kBlock;

/// Carries out a plan on a file whose byte i is i modulo 251.
std::vector<int> carried_out(const std::vector<Read>& reads, std::size_t size) {
  std::vector<int> buffer(size, -1);
  for (const Read& read : reads) {
    CHECK(read.offset % kBlock == 0);
    CHECK(read.bytes % kBlock == 0);
    CHECK(read.bytes <= kMost);
    for (const Copy& copy : read.copies) {
      CHECK(copy.from + copy.bytes <= read.bytes);
      for (std::uint64_t i = 0; i < copy.bytes; ++i)
        buffer[copy.destination + i] = static_cast<int>((read.offset + copy.from + i) % 251);
    }
  }
  return buffer;
}

}  // namespace

TEST_CASE("every byte arrives at its place, whatever the segments") {
  std::mt19937_64 random(0);
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<Segment> segments;
    std::uint64_t destination = 0;
    const auto count = 1 + random() % 12;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t bytes = 1 + random() % (3 * kMost);
      segments.push_back({random() % 2, random() % (20 * kMost), bytes, destination});
      destination += bytes + random() % 64;
    }
    std::shuffle(segments.begin(), segments.end(), random);
    const auto buffer = carried_out(plan_reads(segments, kMost, random() % 2 * kBlock), destination);
    for (const Segment& segment : segments) {
      for (std::uint64_t i = 0; i < segment.bytes; ++i)
        REQUIRE(buffer[segment.destination + i] == static_cast<int>((segment.offset + i) % 251));
    }
  }
}

TEST_CASE("tensors that lie beside each other are read in one go, and nothing twice") {
  std::vector<Segment> segments;
  for (std::uint64_t i = 0; i < 10; ++i) segments.push_back({0, 100 + i * 5000, 5000, i * 5000});
  const auto reads = plan_reads(segments, kMost, 0);
  REQUIRE(reads.size() == 4);
  std::uint64_t end = 0;
  for (const Read& read : reads) {
    CHECK(read.offset == end);
    end = read.offset + read.bytes;
  }
  CHECK(end == 13 * kBlock);
}

TEST_CASE("a gap is read over up to its length, and skipped beyond it") {
  const std::vector<Segment> segments{{0, 0, 10, 0}, {0, 2 * kBlock, 10, 10}};
  CHECK(plan_reads(segments, kMost, kBlock).size() == 1);
  CHECK(plan_reads(segments, kMost, kBlock - 1).size() == 2);
}

TEST_CASE("files are read in order, and one read has one file") {
  const auto reads = plan_reads({{1, 0, 10, 0}, {0, 8, 10, 10}}, kMost, kMost);
  REQUIRE(reads.size() == 2);
  CHECK(reads[0].file == 0);
  CHECK(reads[1].file == 1);
}

TEST_CASE("nothing to read is no read") { CHECK(plan_reads({{0, 5, 0, 0}}, kMost, 0).empty()); }

TEST_CASE("a length that isn't a multiple of the block is refused") {
  CHECK_THROWS_WITH_AS(plan_reads({}, 1000, 0), "a read's length must be a multiple of the block",
                       std::invalid_argument);
  CHECK_THROWS_AS(plan_reads({}, 0, 0), std::invalid_argument);
}
