#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "moetrace/stats/interval.h"

using namespace moetrace::stats;

namespace {

/// Type 7 from a full sort.
double sorted_quantile(std::vector<double> values, double level) {
  std::sort(values.begin(), values.end());
  const double at = level * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

/// Variance of the data without each of them.
std::vector<double> variances_without_one(const std::vector<double>& data) {
  std::vector<double> out;
  for (std::size_t skip = 0; skip < data.size(); ++skip) {
    std::vector<double> rest = data;
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(skip));
    const auto n = static_cast<double>(rest.size());
    const double mean = std::accumulate(rest.begin(), rest.end(), 0.0) / n;
    double squares = 0.0;
    for (const double value : rest) squares += (value - mean) * (value - mean);
    out.push_back(squares / n);
  }
  return out;
}

/// The acceleration of one column, the same in every lane.
double acceleration_of(const std::vector<double>& leave_one_out) {
  Block block;
  for (const double value : leave_one_out) block.push_back(Lanes::Constant(value));
  const Lanes found = jackknife_acceleration(block);
  CHECK((found == found[0]).all());
  return found[0];
}

}  // namespace

TEST_CASE("the normal quantile inverts the distribution function") {
  CHECK(normal_quantile(0.5) == doctest::Approx(0.0));
  CHECK(normal_quantile(0.975) == doctest::Approx(1.959963984540054).epsilon(1e-15));
  CHECK(normal_quantile(1e-300) == doctest::Approx(-37.0471).epsilon(1e-5));
  CHECK(std::isinf(normal_quantile(0.0)));
  CHECK(normal_quantile(1.0) == std::numeric_limits<double>::infinity());
  for (const double p : {1e-12, 1e-4, 0.025, 0.3, 0.5, 0.7, 0.999}) {
    CHECK(normal_cdf(normal_quantile(p)) == doctest::Approx(p).epsilon(1e-13));
  }
}

TEST_CASE("the spatial data of Efron and Tibshirani, 14.3: a = 0.061 and levels 0.110 and 0.985") {
  const std::vector<double> spatial = {48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6,
                                       0,  33, 28, 34, 4,  32, 24, 47, 41, 24, 26, 30, 41};
  CHECK(acceleration_of(variances_without_one(spatial)) == doctest::Approx(0.061).epsilon(0.01));
  const auto [low, high] = bca_levels(0.90, normal_cdf(0.146), 0.061, 2000);
  CHECK(std::fabs(low - 0.110) < 5e-4);
  CHECK(std::fabs(high - 0.985) < 6e-4);
}

TEST_CASE("the air-conditioning data of Davison and Hinkley, example 5.8: a = 0.0938") {
  const std::vector<double> hours = {3, 5, 7, 18, 43, 85, 91, 98, 100, 130, 230, 487};
  std::vector<double> means;
  const double total = std::accumulate(hours.begin(), hours.end(), 0.0);
  for (const double value : hours) means.push_back((total - value) / 11.0);
  CHECK(std::fabs(acceleration_of(means) - 0.0938) < 5e-5);
}

TEST_CASE("without bias and acceleration the levels are the central ones; they never leave [0, 1]") {
  const auto plain = bca_levels(0.95, 0.5, 0.0, 1000);
  CHECK(plain.first == doctest::Approx(0.025));
  CHECK(plain.second == doctest::Approx(0.975));
  for (const double share : {0.0, 0.3, 1.0}) {
    for (const double acceleration : {-0.9, 0.0, 0.9}) {
      const auto levels = bca_levels(0.99, share, acceleration, 100);
      CHECK(levels.first >= 0.0);
      CHECK(levels.second <= 1.0);
    }
  }
  CHECK(acceleration_of(std::vector<double>(5, 2.0)) == 0.0);
}

TEST_CASE("quantiles are those of the sorted column, also of lumpy and tiny ones") {
  std::mt19937 random(0);
  for (const std::size_t count : {2U, 3U, 10U, 1000U, 5000U}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<double> column(count);
      for (double& value : column) {
        const double u = std::uniform_real_distribution<double>(0, 1)(random);
        value = kind == 0   ? u
                : kind == 1 ? -std::log(u)
                : kind == 2 ? std::floor(4 * u)
                            : static_cast<double>(u > 0.999);
      }
      for (const auto& levels :
           {std::pair{0.025, 0.975}, {0.0, 1.0}, {0.4, 0.45}, {0.97, 0.99}, {0.9, 0.1}}) {
        std::vector<double> values = column;
        const auto found = quantile_pair(values, levels);
        CHECK(found.first == doctest::Approx(sorted_quantile(column, levels.first)).epsilon(1e-14));
        CHECK(found.second == doctest::Approx(sorted_quantile(column, levels.second)).epsilon(1e-14));
      }
    }
  }
}
