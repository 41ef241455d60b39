#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "moetrace/stats/matrix.h"
#include "moetrace/stats/resample.h"

namespace moetrace::stats {

/// A statistic of eight columns, to be bootstrapped by one thread. All values are in units of 2^exponent.
class BlockStatistic {
 public:
  virtual ~BlockStatistic() = default;

  /// Its value over the rows of a resample (see Draws).
  virtual Lanes replicate(std::span<const std::uint32_t> rows, double cases) = 0;
  /// Its values without each case, or without each cluster.
  virtual Block leave_one_out() const = 0;

  std::size_t used = 0;  // lanes that hold a column
  std::array<int, kLanes> exponents{};
  Lanes estimate = Lanes::Zero();
  Lanes noise = Lanes::Zero();  // differences up to this are rounding

  /// A pivotal statistic's replicates are distances from the estimate in units of their own error.
  struct Pivot {
    Lanes error = Lanes::Zero();  // of the estimate
    Lanes sum = Lanes::Zero();    // of the distances themselves, and of their squares, over all replicates
    Lanes squares = Lanes::Zero();
  };
  virtual const Pivot* pivot() const { return nullptr; }
};

/// Makes the statistic of the columns first ... first + 7.
using MakeStatistic = std::function<std::unique_ptr<BlockStatistic>(std::size_t first)>;

/// What they are given must outlive them.
MakeStatistic mean_statistic(const MatrixView& x, const Grouping& grouping);
/// The mean of x over that of y. Its parts throw std::domain_error where the mean of y vanishes.
MakeStatistic ratio_statistic(const MatrixView& x, const MatrixView& y, const Grouping& grouping);
/// (mean* - mean) / error*, without clusters.
MakeStatistic studentized_statistic(const MatrixView& x);
/// The quantile at level q, with linear interpolation (type 7).
MakeStatistic quantile_statistic(const MatrixView& x, double q, const Grouping& grouping);

}  // namespace moetrace::stats
