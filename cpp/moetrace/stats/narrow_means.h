#pragma once

#include "moetrace/stats/bootstrap.h"
#include "moetrace/stats/resample.h"

namespace moetrace::stats {

/// Whether resamples of this size can be summed as whole numbers of 32 bits with enough of them left for the
/// values. Else mean_source serves.
bool fits_narrow_means(const Resampler& resampler);

/// Bootstrap of means, sixteen columns at a time: replicates as sums of whole numbers, to about 2e-8 of the
/// largest value, and the few that an interval's ends are made of once more as doubles.
BootstrapIntervals bootstrap_narrow_means(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                          const Resampler& resampler, const Interrupt& interrupt);

}  // namespace moetrace::stats
