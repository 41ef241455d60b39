#include "moetrace/stats/bootstrap.h"

#include <stdexcept>

#include "moetrace/stats/block_source.h"
#include "moetrace/stats/narrow_means.h"

namespace moetrace::stats {

namespace {

Resampler make_resampler(std::size_t cases, Labels labels, const BootstrapOptions& options) {
  if (labels.empty()) return Resampler::of_cases(cases);
  return options.two_stage ? Resampler::two_stage(labels, options.clusters)
                           : Resampler::of_clusters(labels, options.clusters);
}

}  // namespace

BootstrapIntervals bootstrap_mean(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                  const Interrupt& interrupt) {
  const Resampler resampler = make_resampler(static_cast<std::size_t>(x.rows()), labels, options);
  if (options.interval != Interval::studentized) {
    if (fits_narrow_means(resampler)) return bootstrap_narrow_means(x, labels, options, resampler, interrupt);
    return bootstrap_blocks(*mean_source(x, labels, options, resampler), resampler, options, interrupt);
  }
  if (!labels.empty()) throw std::invalid_argument("a studentised interval is made without clusters only");
  return bootstrap_blocks(*studentized_source(x), resampler, options, interrupt);
}

BootstrapIntervals bootstrap_ratio(const MatrixView& x, const MatrixView& y, Labels labels,
                                   const BootstrapOptions& options, const Interrupt& interrupt) {
  if (x.rows() != y.rows() || x.cols() != y.cols()) {
    throw std::invalid_argument("numerators and denominators differ in shape");
  }
  if (options.interval == Interval::studentized) {
    throw std::invalid_argument("a studentised interval is made for a mean only");
  }
  const Resampler resampler = make_resampler(static_cast<std::size_t>(x.rows()), labels, options);
  return bootstrap_blocks(*ratio_source(x, y, labels, options), resampler, options, interrupt);
}

std::vector<std::uint32_t> resample_counts(std::size_t cases, Labels labels, const BootstrapOptions& options,
                                           std::size_t first, std::size_t count) {
  const Resampler resampler = make_resampler(cases, labels, options);
  const bool whole_clusters = !labels.empty() && !options.two_stage;
  std::vector<std::uint32_t> counts(count * cases);
  std::vector<std::uint32_t> drawn(resampler.rows());
  for (std::size_t b = 0; b < count; ++b) {
    resampler.draw(options.seed, first + b, drawn);
    for (std::size_t i = 0; i < cases; ++i) {
      counts[b * cases + i] = drawn[whole_clusters ? static_cast<std::size_t>(labels[i]) : i];
    }
  }
  return counts;
}

std::vector<double> mean_replicates(const MatrixView& x, Labels labels, const BootstrapOptions& options,
                                    const Interrupt& interrupt) {
  const Resampler resampler = make_resampler(static_cast<std::size_t>(x.rows()), labels, options);
  const auto source = mean_source(x, labels, options, resampler);
  const ResamplePlan plan(resampler, options.seed, 0, options.resamples, options.threads, interrupt);
  const std::size_t columns = source->columns();
  std::vector<double> replicates(options.resamples * columns);
  Block block;
  AlignedBuffer<double> values(sums_of(options.resamples));
  for (std::size_t first = 0; first < columns; first += kLanes) {
    source->load(first, block);
    source->replicate(plan, {0, options.resamples}, block, values.data());
    for (std::size_t b = 0; b < options.resamples; ++b) {
      for (std::size_t lane = 0; lane < block.used; ++lane) {
        replicates[b * columns + first + lane] = values.data()[b * kLanes + lane] / source->unit();
      }
    }
  }
  return replicates;
}

}  // namespace moetrace::stats
