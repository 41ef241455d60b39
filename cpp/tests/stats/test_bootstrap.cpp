#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "moetrace/stats/bootstrap.h"

using namespace moetrace::stats;

namespace {

Matrix skewed(Eigen::Index rows, Eigen::Index columns) {
  std::mt19937 random(3);
  std::exponential_distribution<double> exponential(1.0);
  Matrix x(rows, columns);
  for (Eigen::Index i = 0; i < x.size(); ++i) x.data()[i] = exponential(random);
  return x;
}

}  // namespace

TEST_CASE("the standard error of a mean is the root of its variance over n") {
  const Matrix x = skewed(40, 3);
  BootstrapOptions options;
  options.resamples = 20000;
  const auto out = bootstrap_mean(view_of(x), {}, options);
  for (Eigen::Index column = 0; column < 3; ++column) {
    const auto at = static_cast<std::size_t>(column);
    const double mean = x.col(column).mean();
    const double ideal = std::sqrt((x.col(column).array() - mean).square().sum()) / 40.0;
    CHECK(out.estimate[at] == doctest::Approx(mean));
    CHECK(out.standard_error[at] == doctest::Approx(ideal).epsilon(0.02));
    CHECK(out.low[at] < mean);
    CHECK(out.high[at] > mean);
  }
}

TEST_CASE("resamples in chunks are the resamples at once") {
  const Matrix x = skewed(20000, 1);
  BootstrapOptions options;
  options.resamples = 1700;  // of 20,000 rows each: just more than a bootstrap holds at once, 128 MiB
  const auto in_chunks = bootstrap_mean(view_of(x), {}, options);
  auto replicates = mean_replicates(view_of(x), {}, options);
  std::sort(replicates.begin(), replicates.end());
  const double at = 0.025 * 1699.0;
  const auto rank = static_cast<std::size_t>(at);
  const double low =
      replicates[rank] + (replicates[rank + 1] - replicates[rank]) * (at - static_cast<double>(rank));
  CHECK(in_chunks.low[0] == doctest::Approx(low).epsilon(1e-14));
}

TEST_CASE("a column that doesn't vary has a point for an interval") {
  Matrix x = skewed(20, 9);
  x.col(4).setConstant(0.1);
  for (const Interval interval :
       {Interval::percentile, Interval::basic, Interval::bca, Interval::studentized}) {
    BootstrapOptions options;
    options.interval = interval;
    options.resamples = 200;
    const auto out = bootstrap_mean(view_of(x), {}, options);
    CHECK(out.degenerate[4] == 1);
    CHECK(out.low[4] == 0.1);
    CHECK(out.high[4] == 0.1);
    CHECK(out.standard_error[4] == 0.0);
    CHECK(out.degenerate[3] == 0);
  }
}

TEST_CASE("denominators that vanish are refused") {
  const Matrix x = skewed(6, 1);
  Matrix y = Matrix::Zero(6, 1);
  BootstrapOptions options;
  options.resamples = 100;
  CHECK_THROWS_AS(bootstrap_ratio(view_of(x), view_of(y), {}, options), std::domain_error);
  y(0, 0) = 1.0;  // absent from a third of the resamples
  CHECK_THROWS_WITH_AS(bootstrap_ratio(view_of(x), view_of(y), {}, options), doctest::Contains("resample"),
                       std::domain_error);
}

TEST_CASE("labels are checked") {
  const Matrix x = skewed(4, 1);
  BootstrapOptions options;
  options.clusters = 2;
  CHECK_THROWS_AS(bootstrap_mean(view_of(x), std::vector<std::int32_t>{0, 1, 1}, options),
                  std::invalid_argument);
  CHECK_THROWS_AS(bootstrap_mean(view_of(x), std::vector<std::int32_t>{0, 1, 2, 1}, options),
                  std::invalid_argument);
  options.interval = Interval::studentized;
  CHECK_THROWS_AS(bootstrap_mean(view_of(x), std::vector<std::int32_t>{0, 1, 0, 1}, options),
                  std::invalid_argument);
}
