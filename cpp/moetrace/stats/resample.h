#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/stats/matrix.h"
#include "moetrace/stats/parallel.h"

namespace moetrace::stats {

/// How a bootstrap resample is drawn: which rows, how many times each.
///
/// Plain: n draws of n rows. Clustered: G draws of G clusters, and a drawn cluster counts as a whole.
/// Two-stage: G draws of G clusters, then for each drawn cluster as many draws of its cases as it has.
class Resampler {
 public:
  static Resampler of_cases(std::size_t cases);
  static Resampler of_clusters(Labels labels, std::size_t clusters);
  static Resampler two_stage(Labels labels, std::size_t clusters);

  /// The most draws that a resample can consist of.
  std::size_t most_draws() const noexcept;

  /// Rows that are counted: cases, or clusters when drawn as a whole.
  std::size_t rows() const noexcept { return rows_; }

  /// Whether every resample holds the same number of cases.
  bool constant_size() const noexcept { return constant_size_; }

  /// Mean over resample b of a statistic whose sums over the rows are `values`.
  double mean_of(std::uint64_t seed, std::uint64_t b, const double* values) const;

  /// counts[row] = how often row is in resample b; returns how many cases the resample holds.
  double draw(std::uint64_t seed, std::uint64_t b, std::span<std::uint32_t> counts) const;

 private:
  std::size_t rows_ = 0;
  bool constant_size_ = true;
  std::vector<double> sizes_;                        // cases of a cluster; empty for a plain resample
  std::vector<std::vector<std::uint32_t>> members_;  // rows of a cluster; two-stage only
};

/// Some of the resamples of a plan.
struct Slice {
  std::size_t first;
  std::size_t count;
};

/// Doubles that the sums of so many resamples take, bundles being filled up.
constexpr std::size_t sums_of(std::size_t resamples) {
  return ceil_div(resamples, kBundle) * kBundle * kLanes;
}

/// The counts of resamples first ... first + count - 1 in the form that the kernels take: the two low bits
/// of each count as patterns, what is left (4 and above, 2 % of counts) as a list.
class ResamplePlan {
 public:
  ResamplePlan(const Resampler& resampler, std::uint64_t seed, std::uint64_t first, std::size_t count,
               std::size_t threads = 1, const Interrupt& interrupt = {});

  /// Resamples that are best worked on together; where a slice may begin.
  static constexpr std::size_t kPart = 256;

  std::size_t count() const noexcept { return count_; }

  /// sums [slice.count rounded up to kBundle][lanes] = counts times block [padded_rows][lanes], for the
  /// resamples of the slice, which begins at a multiple of kPart. `table` is scratch.
  template <class T>
  void weighted_sums(const Slice& slice, const T* block, AlignedBuffer<T>& table, T* sums) const;

  /// Mean over one resample of a statistic whose sums over the rows are `values`.
  double mean_of(std::size_t resample, const double* values) const;

  /// Cases of each resample of a slice.
  std::span<const double> sizes(const Slice& slice) const {
    return std::span<const double>(sizes_).subspan(slice.first, slice.count);
  }

 private:
  static constexpr std::size_t kSumsOfBundle = kBundle / 2;

  void fill(const Resampler& resampler, std::uint64_t seed, std::uint64_t first, std::size_t begin,
            std::size_t end, std::vector<Rest>& rests);

  std::size_t count_;
  std::size_t rows_;
  std::size_t groups_;
  std::vector<std::uint8_t> patterns_;    // [bundle][group][kBundle]
  std::vector<std::vector<Rest>> rests_;  // of each part, numbered from its beginning
  std::vector<double> sizes_;
};

/// Bytes that a plan of one resample takes, for cutting a large computation into parts.
std::size_t plan_bytes(std::size_t rows);

}  // namespace moetrace::stats
