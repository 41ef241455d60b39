#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace moetrace::stats {

/// A replicate that is known only nearly, in a form that is quickly sorted: keys have the order of the near
/// values, and where those are equal that of the resamples.
using NearKey = std::uint64_t;

inline NearKey near_key(float value, std::uint32_t resample) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return NearKey{bits >> 31 != 0 ? ~bits : bits | 0x80000000U} << 32 | resample;
}
inline float value_of(NearKey key) {
  const auto ordered = static_cast<std::uint32_t>(key >> 32);
  return std::bit_cast<float>(ordered >> 31 != 0 ? ordered & 0x7fffffffU : ~ordered);
}
inline std::uint32_t resample_of(NearKey key) { return static_cast<std::uint32_t>(key); }

/// All replicates whose near values lie between two bounds.
struct KnownRange {
  std::span<NearKey> keys;
  std::size_t offset = 0;  // replicates below
  double from = -std::numeric_limits<double>::infinity();
  double to = std::numeric_limits<double>::infinity();
};

/// Quantiles (of type 7) of replicates that are known nearly, and exactly when one asks for them.
///
/// An order statistic is found among the near values; then every replicate that could stand in its place,
/// given the error of the near values, is evaluated exactly. The result is that of all exact values.
class ExactQuantile {
 public:
  /// `exact(resample)` gives a replicate; near values are off by at most half of `window`, and half of
  /// `relative` of themselves.
  ExactQuantile(std::size_t count, double window, double relative, std::function<double(std::uint32_t)> exact)
      : count_(count), window_(window), relative_(relative), exact_(std::move(exact)) {}

  /// The quantile at a level. Nothing where it needs replicates beyond the range. Reorders the keys.
  std::optional<double> operator()(const KnownRange& range, double level) const;

  /// Exact values of sorted keys. Of a long run of equal near values, which are sums of the same cases, one
  /// stands for all.
  std::vector<double> evaluate(std::span<const NearKey> keys) const;

 private:
  std::size_t count_;
  double window_;
  double relative_;
  std::function<double(std::uint32_t)> exact_;
};

}  // namespace moetrace::stats
