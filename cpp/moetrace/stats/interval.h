#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <utility>

namespace moetrace::stats {

/// How an interval is read off the replicates.
enum class Interval { percentile, basic, bca, studentized };

/// Standard normal distribution function and its inverse (to about 1e-15; -inf and inf at 0 and 1).
double normal_cdf(double z);
double normal_quantile(double p);
/// The inverse to 5e-4 (Abramowitz and Stegun 26.2.23), to start a search from.
double rough_normal_quantile(double p);

/// The two levels between which a central interval of this confidence lies.
std::pair<double, double> central_levels(double confidence);

/// The levels of the BCa interval (Efron 1987, eqs. 2.3 and 4.1): from the share of replicates below the
/// estimate (ties count half) and the acceleration. The share is kept half a replicate away from 0 and 1,
/// where the bias correction would be infinite.
std::pair<double, double> bca_levels(double confidence, double share_below, double acceleration,
                                     std::size_t replicates);

/// sum d^3 / (6 (sum d^2)^1.5) of the jackknife's deviations, mean minus value; 0 where they vanish.
double jackknife_acceleration(std::span<const double> leave_one_out);

/// Where a quantile of type 7 falls among `count` sorted values: at rank, and `part` of the way to the next.
struct Place {
  std::size_t rank;
  double part;
};
Place place_of(double level, std::size_t count);
double between(double lower, double upper, double part);

/// Quantiles of values[0], values[stride], ... at two levels, with linear interpolation between order
/// statistics (Hyndman and Fan's type 7, numpy's default). `scratch` holds `count`.
std::pair<double, double> quantile_pair(const double* values, std::size_t stride, std::size_t count,
                                        std::pair<double, double> levels, double* scratch);

/// Moments of a sample, to guess where its tails lie.
struct Moments {
  double mean;
  double spread;
  double skewness;
};

/// Bounds between which the quantile at this level probably lies, with little else.
std::pair<double, double> quantile_window(double level, std::size_t count, const Moments& moments);

/// The same quantiles from the tails alone: all those of `count` values that lie below some bound and all
/// above another one, with `centre` between the bounds. Nothing where the tails are too short for that.
std::optional<std::pair<double, double>> quantiles_of_tails(std::span<double> tails, double centre,
                                                            std::size_t count,
                                                            std::pair<double, double> levels);

}  // namespace moetrace::stats
