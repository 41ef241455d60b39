#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "moetrace/stats/sign_flip.h"

using namespace moetrace::stats;

namespace {

Matrix random_matrix(Eigen::Index rows, Eigen::Index columns) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal(0.3, 1.0);
  Matrix x(rows, columns);
  for (Eigen::Index i = 0; i < x.size(); ++i) x.data()[i] = normal(random);
  return x;
}

/// The same counts from a plain loop over given signs.
struct Plain {
  std::vector<std::int64_t> own, single_step, step_down;
};

Plain count_plainly(const Matrix& x, const std::vector<std::vector<int>>& flips,
                    const std::vector<std::int64_t>& order) {
  const auto columns = static_cast<std::size_t>(x.cols());
  std::vector<double> observed(columns);
  for (std::size_t j = 0; j < columns; ++j) {
    const auto column = x.col(static_cast<Eigen::Index>(j));
    observed[j] = std::fabs(column.sum()) - 1e-12 * column.cwiseAbs().sum();
  }
  Plain out{std::vector<std::int64_t>(columns), std::vector<std::int64_t>(columns),
            std::vector<std::int64_t>(columns)};
  for (const auto& signs : flips) {
    std::vector<double> sums(columns, 0.0);
    for (std::size_t i = 0; i < signs.size(); ++i) {
      for (std::size_t j = 0; j < columns; ++j) {
        sums[j] += signs[i] * x(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(j));
      }
    }
    double largest = 0.0;
    for (std::size_t place = columns; place-- > 0;) {
      const auto j = static_cast<std::size_t>(order[place]);
      largest = std::max(largest, std::fabs(sums[j]));
      out.own[j] += std::fabs(sums[j]) >= observed[j];
      out.step_down[j] += largest >= observed[j];
    }
    for (std::size_t j = 0; j < columns; ++j) out.single_step[j] += largest >= observed[j];
  }
  return out;
}

void check(const Matrix& x, const SignFlipCounts& found, const std::vector<std::vector<int>>& flips) {
  const Plain plain = count_plainly(x, flips, found.order);
  CHECK(found.own == plain.own);
  CHECK(found.single_step == plain.single_step);
  CHECK(found.step_down == plain.step_down);
}

}  // namespace

TEST_CASE("all assignments of signs are visited when they are few enough") {
  Matrix x = random_matrix(7, 19);
  x.row(2).setZero();
  x.col(5).setZero();
  x.col(6) = x.col(7);
  const auto found = sign_flip(view_of(x), {128, 0, 2});
  CHECK(found.exact);
  CHECK(found.flips == 128);
  std::vector<std::vector<int>> flips;
  for (int code = 0; code < 128; ++code) {
    flips.emplace_back();
    for (int i = 0; i < 7; ++i) flips.back().push_back((code >> i & 1) != 0 ? 1 : -1);
  }
  check(x, found, flips);
  CHECK_FALSE(sign_flip(view_of(x), {127, 0, 1}).exact);
}

TEST_CASE("sampled flips are those of flip_signs, also of more rows than a table block") {
  for (const Eigen::Index rows : {31, 128, 150}) {
    const Matrix x = random_matrix(rows, 11);
    const auto found = sign_flip(view_of(x), {1500, 9, 2});
    CHECK_FALSE(found.exact);
    CHECK(found.flips == 1500);
    const auto signs = flip_signs(static_cast<std::size_t>(rows), 9, 0, 1500);
    std::vector<std::vector<int>> flips;
    for (std::size_t b = 0; b < 1500; ++b) {
      const auto* from = signs.data() + b * static_cast<std::size_t>(rows);
      flips.emplace_back(from, from + rows);
    }
    check(x, found, flips);
  }
}

TEST_CASE("a sign depends on seed, flip and row alone") {
  const auto few = flip_signs(10, 4, 0, 8);
  const auto many = flip_signs(200, 4, 5, 1);
  for (std::size_t i = 0; i < 10; ++i) CHECK(few[5 * 10 + i] == many[i]);
}

TEST_CASE("no columns are no trouble, no rows are refused") {
  const Matrix none(5, 0);
  CHECK(sign_flip(view_of(none), {100, 0, 2}).own.empty());
  const Matrix empty(0, 3);
  CHECK_THROWS_AS(sign_flip(view_of(empty), {100, 0, 1}), std::invalid_argument);
}
