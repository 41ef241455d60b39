#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "moetrace/stats/bootstrap.h"
#include "moetrace/stats/sign_flip.h"

using namespace moetrace::stats;

namespace {

Matrix random_matrix(Eigen::Index rows, Eigen::Index columns) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal(0.1, 1.0);
  Matrix x(rows, columns);
  for (Eigen::Index i = 0; i < x.size(); ++i) x.data()[i] = normal(random);
  return x;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

}  // namespace

TEST_CASE("every instruction set and number of threads gives the same bits") {
  const Matrix x = random_matrix(131, 21);
  BootstrapOptions options;
  options.interval = Interval::bca;
  options.resamples = 1500;
  use_instruction_set("portable");
  const auto intervals = bootstrap_mean(view_of(x), {}, options);
  const auto flips = sign_flip(view_of(x), {3000, 1, 1});
  for (const auto name : instruction_sets()) {
    for (const std::size_t threads : {1U, 2U, 4U}) {
      CAPTURE(std::string(name));
      CAPTURE(threads);
      use_instruction_set(name);
      options.threads = threads;
      const auto again = bootstrap_mean(view_of(x), {}, options);
      CHECK(same_bits(intervals.low, again.low));
      CHECK(same_bits(intervals.high, again.high));
      CHECK(same_bits(intervals.standard_error, again.standard_error));
      const auto flips_again = sign_flip(view_of(x), {3000, 1, threads});
      CHECK(flips.own == flips_again.own);
      CHECK(flips.single_step == flips_again.single_step);
      CHECK(flips.step_down == flips_again.step_down);
    }
  }
  use_instruction_set("");
}

TEST_CASE("an unknown instruction set is refused with the names of those that are there") {
  CHECK_THROWS_WITH_AS(use_instruction_set("abacus"), doctest::Contains("portable"), std::invalid_argument);
}

TEST_CASE("values outside a range are collected in their order, at the bounds too") {
  AlignedBuffer<double> values(6 * kLanes);
  for (std::size_t i = 0; i < 6 * kLanes; ++i) values.data()[i] = static_cast<double>(i / kLanes);
  alignas(64) double centre[kLanes];
  alignas(64) double reach[kLanes];
  std::vector<std::vector<double>> out(kLanes, std::vector<double>(6));
  double* to[kLanes];
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    centre[lane] = 2.0;
    reach[lane] = static_cast<double>(lane);
    to[lane] = out[lane].data();
  }
  std::int64_t taken[kLanes];
  kernels().collect_outside(values.data(), 6, centre, reach, to, taken);
  CHECK(taken[0] == 6);
  CHECK(taken[1] == 5);
  CHECK(taken[2] == 3);
  CHECK(out[2][0] == 0.0);
  CHECK(out[2][1] == 4.0);
  CHECK(out[2][2] == 5.0);
  CHECK(taken[3] == 1);
  CHECK(taken[4] == 0);
}
