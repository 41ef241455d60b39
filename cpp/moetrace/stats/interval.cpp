#include "moetrace/stats/interval.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace moetrace::stats {

namespace {

/// The inverse of the distribution function to 5e-4 (Abramowitz and Stegun 26.2.23), to start a search from.
double rough_normal_quantile(double p) {
  if (p <= 0.0) return -std::numeric_limits<double>::infinity();
  if (p > 0.5) return -rough_normal_quantile(1.0 - p);
  const double t = std::sqrt(-2.0 * std::log(p));
  return (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))) -
         t;
}

double order_statistic(std::span<double> values, const Place& place) {
  const auto nth = values.begin() + static_cast<std::ptrdiff_t>(place.rank);
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

Lanes jackknife_acceleration(const Block& leave_one_out) {
  Lanes mean = Lanes::Zero();
  for (const Lanes& value : leave_one_out) mean += value;
  mean /= static_cast<double>(leave_one_out.size());
  Lanes squares = Lanes::Zero();
  Lanes cubes = Lanes::Zero();
  for (const Lanes& value : leave_one_out) {
    const Lanes apart = mean - value;
    squares += apart * apart;
    cubes += apart * apart * apart;
  }
  const Lanes scale = squares * squares.sqrt();
  return (scale > 0.0).select(cubes / (6.0 * scale), Lanes::Zero());
}

std::pair<double, double> quantile_pair(std::span<double> values, std::pair<double, double> levels) {
  const double high = order_statistic(values, place_of(levels.second, values.size()));
  return {order_statistic(values, place_of(levels.first, values.size())), high};
}

}  // namespace moetrace::stats
