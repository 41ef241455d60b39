#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moetrace/stats/interval.h"
#include "moetrace/stats/matrix.h"
#include "moetrace/stats/parallel.h"

namespace moetrace::stats {

/// How a bootstrap is drawn and read.
struct BootstrapOptions {
  Interval interval = Interval::percentile;
  double confidence = 0.95;
  std::size_t resamples = 5000;
  std::uint64_t seed = 0;
  std::size_t clusters = 0;  // 0: rows stand for themselves
  bool two_stage = false;
  std::size_t threads = 1;
};

/// One entry for each column.
struct BootstrapIntervals {
  explicit BootstrapIntervals(std::size_t columns)
      : estimate(columns), low(columns), high(columns), standard_error(columns), degenerate(columns) {}

  std::vector<double> estimate;
  std::vector<double> low;
  std::vector<double> high;
  std::vector<double> standard_error;
  std::vector<std::uint8_t> degenerate;  // 1: the replicates don't vary, the interval is a point
};

/// Means of the columns of x (cases x columns).
BootstrapIntervals bootstrap_mean(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                  const Interrupt& interrupt = {});

/// Ratios of the means of x to those of y, over the same cases. Throws std::domain_error where the mean of
/// y is zero, in the data or in a resample.
BootstrapIntervals bootstrap_ratio(const MatrixView& x, const MatrixView& y, Labels labels,
                                   const BootstrapOptions& options, const Interrupt& interrupt = {});

/// Quantiles of the columns of x at level q.
BootstrapIntervals bootstrap_quantile(const MatrixView& x, double q, Labels labels,
                                      const BootstrapOptions& options, const Interrupt& interrupt = {});

/// [resamples][columns]: the replicates of the means themselves, for checks.
std::vector<double> mean_replicates(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                    const Interrupt& interrupt = {});

}  // namespace moetrace::stats
