#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "moetrace/stats/matrix.h"

namespace moetrace::stats {

/// How an interval is read off the replicates.
enum class Interval { percentile, basic, bca, studentized };

/// Standard normal distribution function and its inverse (to about 1e-15; -inf and inf at 0 and 1).
double normal_cdf(double z);
double normal_quantile(double p);

/// The two levels between which a central interval of this confidence lies.
std::pair<double, double> central_levels(double confidence);

/// The levels of the BCa interval (Efron 1987, eqs. 2.3 and 4.1): from the share of replicates below the
/// estimate (ties count half) and the acceleration. The share is kept half a replicate away from 0 and 1,
/// where the bias correction would be infinite.
std::pair<double, double> bca_levels(double confidence, double share_below, double acceleration,
                                     std::size_t replicates);

/// Of each lane sum d^3 / (6 (sum d^2)^1.5) of the jackknife's deviations, mean minus value; 0 where they
/// vanish.
Lanes jackknife_acceleration(const Block& leave_one_out);

/// Where a quantile of type 7 (Hyndman and Fan; numpy's default) falls among `count` sorted values: at
/// `rank`, and `part` of the way to the next.
struct Place {
  std::size_t rank;
  double part;
};
Place place_of(double level, std::size_t count);
double between(double lower, double upper, double part);

/// Quantiles of type 7 at two levels. Reorders the values.
std::pair<double, double> quantile_pair(std::span<double> values, std::pair<double, double> levels);

}  // namespace moetrace::stats
