#include "moetrace/stats/interval.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace moetrace::stats {

namespace {

/// The value at a place, from unsorted values of which the first has rank `offset`.
double order_statistic(std::span<double> values, std::size_t offset, Place place) {
  const auto nth = values.begin() + static_cast<std::ptrdiff_t>(place.rank - offset);
  std::nth_element(values.begin(), nth, values.end());
  if (place.part == 0.0 || nth + 1 == values.end()) return *nth;
  return between(*nth, *std::min_element(nth + 1, values.end()), place.part);
}

}  // namespace

Place place_of(double level, std::size_t count) {
  const double at = std::clamp(level, 0.0, 1.0) * static_cast<double>(count - 1);
  const double whole = std::floor(at);
  return {static_cast<std::size_t>(whole), at - whole};
}

double between(double lower, double upper, double part) {
  if (part == 0.0 || lower == upper) return lower;  // also keeps infinities apart from each other
  return lower + (upper - lower) * part;
}

double normal_cdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }

double rough_normal_quantile(double p) {
  if (p <= 0.0) return -std::numeric_limits<double>::infinity();
  if (p > 0.5) return -rough_normal_quantile(1.0 - p);
  const double t = std::sqrt(-2.0 * std::log(p));
  return (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))) -
         t;
}

double normal_quantile(double p) {
  if (p > 0.5) return -normal_quantile(1.0 - p);
  double z = rough_normal_quantile(p);
  if (std::isinf(z)) return z;
  // Halley's iteration on log cdf - log p, which is nearly quadratic in z, so that it converges far out too.
  for (int step = 0; step < 10; ++step) {
    const double below = normal_cdf(z);
    const double slope = std::exp(-0.5 * z * z) / (std::sqrt(2.0 * std::numbers::pi) * below);
    const double bend = -slope * (z + slope);
    const double miss = std::log(below / p);
    const double change = 2.0 * miss * slope / (2.0 * slope * slope - miss * bend);
    z -= change;
    if (std::fabs(change) <= 1e-9) break;  // the next step would be of the order of its cube
  }
  return z;
}

std::pair<double, double> central_levels(double confidence) {
  const double outside = (1.0 - confidence) / 2.0;
  return {outside, 1.0 - outside};
}

std::pair<double, double> bca_levels(double confidence, double share_below, double acceleration,
                                     std::size_t replicates) {
  const double half = 0.5 / static_cast<double>(replicates);
  const double bias = normal_quantile(std::clamp(share_below, half, 1.0 - half));
  const auto corrected = [&](double level) {
    const double shifted = bias + normal_quantile(level);
    const double scale = 1.0 - acceleration * shifted;
    if (scale <= 0.0) return shifted > 0.0 ? 1.0 : 0.0;  // the limit as the scale vanishes
    return normal_cdf(bias + shifted / scale);
  };
  const auto levels = central_levels(confidence);
  return {corrected(levels.first), corrected(levels.second)};
}

double jackknife_acceleration(std::span<const double> leave_one_out) {
  double mean = 0.0;
  for (const double value : leave_one_out) mean += value;
  mean /= static_cast<double>(leave_one_out.size());
  double squares = 0.0;
  double cubes = 0.0;
  for (const double value : leave_one_out) {
    const double apart = mean - value;
    squares += apart * apart;
    cubes += apart * apart * apart;
  }
  const double scale = squares * std::sqrt(squares);
  return scale > 0.0 ? cubes / (6.0 * scale) : 0.0;
}

std::pair<double, double> quantile_window(double level, std::size_t count, const Moments& moments) {
  // Room for the error of the guess, and for the scatter of the number of values beyond a level.
  const double slack = 0.004 + 2.0 * std::sqrt(level * (1.0 - level) / static_cast<double>(count));
  const auto bound = [&](double at) {
    const double z = rough_normal_quantile(std::clamp(at, 0.0, 1.0));
    if (std::isinf(z)) return z;
    const double bent = z + (z * z - 1.0) * moments.skewness / 6.0;  // Cornish and Fisher's first term
    return moments.mean + moments.spread * bent;
  };
  return {bound(level - slack), bound(level + slack)};
}

std::optional<std::pair<double, double>> quantiles_of_tails(std::span<double> tails, double centre,
                                                            std::size_t count,
                                                            std::pair<double, double> levels) {
  const Place low = place_of(levels.first, count);
  const Place high = place_of(levels.second, count);
  const auto middle =
      std::partition(tails.begin(), tails.end(), [&](double value) { return value < centre; });
  const std::span<double> lower(tails.begin(), middle);
  const std::span<double> upper(middle, tails.end());
  const std::size_t inner = count - upper.size();  // rank of the upper tail's smallest value
  const bool reach = low.rank + 2 <= lower.size() && high.rank >= inner && high.rank < count;
  if (!reach || upper.empty()) return std::nullopt;
  return std::pair{order_statistic(lower, 0, low), order_statistic(upper, inner, high)};
}

std::pair<double, double> quantile_pair(const double* values, std::size_t stride, std::size_t count,
                                        std::pair<double, double> levels, double* scratch) {
  constexpr std::size_t kSample = 256;
  if (count > 4 * kSample && levels.first < levels.second) {
    // Bounds from the first few values, which are as good as any: four standard deviations of their rank.
    const auto slack = [](double level) { return 0.01 + 4.0 * std::sqrt(level * (1.0 - level) / kSample); };
    const std::pair<double, double> inside{levels.first + slack(levels.first),
                                           levels.second - slack(levels.second)};
    if (inside.first < 0.4 && inside.second > 0.6) {
      const auto [below, above] = quantile_pair(values, stride, kSample, inside, scratch);
      std::size_t taken = 0;
      for (std::size_t i = 0; i < count; ++i) {
        const double value = values[i * stride];
        scratch[taken] = value;
        taken += value <= below || value >= above;
      }
      const double centre = below + (above - below) / 2.0;
      if (const auto found = quantiles_of_tails({scratch, taken}, centre, count, levels)) return *found;
    }
  }
  for (std::size_t i = 0; i < count; ++i) scratch[i] = values[i * stride];
  const std::span<double> all(scratch, count);
  const double first = order_statistic(all, 0, place_of(levels.first, count));
  return {first, order_statistic(all, 0, place_of(levels.second, count))};
}

}  // namespace moetrace::stats
