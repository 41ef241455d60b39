#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/stats/matrix.h"

namespace moetrace::stats {

/// What a bootstrap draws. Without labels n of n cases; with labels G of G clusters, each with all its cases;
/// in two stages for each drawn cluster once more as many of its cases as it has.
struct Grouping {
  Labels labels = {};
  std::size_t clusters = 0;
  bool two_stage = false;

  bool draws_clusters() const { return !labels.empty() && !two_stage; }
};

/// Rows of successive resamples, one list after the other.
struct Draws {
  std::vector<std::uint32_t> rows;  // ascending within a resample: the same rows give the same sum
  std::vector<std::size_t> ends;    // of each resample's list
  std::vector<double> cases;        // that each resample holds

  std::size_t count() const { return ends.size(); }
  std::span<const std::uint32_t> rows_of(std::size_t resample) const {
    const std::size_t begin = resample == 0 ? 0 : ends[resample - 1];
    return std::span<const std::uint32_t>(rows).subspan(begin, ends[resample] - begin);
  }
};

/// Draws resamples; each is a function of the seed and its number.
class Resampler {
 public:
  Resampler(std::size_t cases, const Grouping& grouping);

  /// Resamples first ... first + count - 1. The rows are cases, or clusters where those are drawn as a whole.
  Draws draw(std::uint64_t seed, std::uint64_t first, std::size_t count) const;

  /// Rows that can be drawn.
  std::size_t rows() const noexcept { return rows_; }

  /// Bytes that the draws of one resample take, on average.
  std::size_t bytes_of_resample() const noexcept;

 private:
  double count_rows(std::uint64_t seed, std::uint64_t resample, std::span<std::uint32_t> counts) const;

  std::size_t rows_;
  std::vector<double> sizes_;                        // cases of each unit of the first stage
  std::vector<std::vector<std::uint32_t>> members_;  // and which they are; two-stage only
};

}  // namespace moetrace::stats
