#pragma once

#include <algorithm>
#include <memory>
#include <optional>

#include "moetrace/stats/bootstrap.h"
#include "moetrace/stats/resample.h"

namespace moetrace::stats {

/// Bytes that a bootstrap may hold for its counts, and as many again for its replicates.
inline constexpr std::size_t kMemoryBudget = std::size_t{112} << 20;

/// All resamples of a bootstrap, within the memory budget: their counts are held once for all threads where
/// that is possible, and else drawn again by each task, a chunk after the other. Threads are fewer than
/// wanted where their replicates would take too much.
class Resamples {
 public:
  Resamples(const Resampler& resampler, const BootstrapOptions& options, std::size_t bytes_of_counts,
            std::size_t bytes_of_replicates, const Interrupt& interrupt)
      : resampler_(resampler),
        options_(options),
        threads_(std::clamp<std::size_t>(kMemoryBudget / (options.resamples * bytes_of_replicates), 1,
                                         std::max<std::size_t>(options.threads, 1))),
        chunk_(std::max(ResamplePlan::kPart, kMemoryBudget / bytes_of_counts)) {
    if (chunk_ >= options.resamples) {
      chunk_ = options.resamples;
      shared_ = std::make_unique<const ResamplePlan>(resampler, options.seed, 0, options.resamples,
                                                     options.threads, interrupt);
    } else {
      chunk_ = ceil_div(chunk_, threads_ * ResamplePlan::kPart) * ResamplePlan::kPart;
    }
  }

  std::size_t threads() const noexcept { return threads_; }

  /// visit(plan, slice, first) for all resamples in order, a slice at a time; `first` is the number of the
  /// slice's first resample.
  template <class Visit>
  void for_each_slice(Worker& worker, const Visit& visit) const {
    constexpr std::size_t kSlice = 64 * ResamplePlan::kPart;  // a few milliseconds
    const Interrupt ask = [&worker] {
      worker.check();
      return false;
    };
    for (std::size_t begin = 0; begin < options_.resamples; begin += chunk_) {
      const std::size_t end = std::min(options_.resamples, begin + chunk_);
      std::optional<const ResamplePlan> own;
      if (!shared_) own.emplace(resampler_, options_.seed, begin, end - begin, 1, ask);
      for (std::size_t first = begin; first < end; first += kSlice) {
        worker.check();
        visit(shared_ ? *shared_ : *own, Slice{first - begin, std::min(kSlice, end - first)}, first);
      }
    }
  }

  /// Mean over one resample of a statistic whose sums over the rows are `values`.
  double mean_of(std::size_t resample, const double* values) const {
    return shared_ ? shared_->mean_of(resample, values) : resampler_.mean_of(options_.seed, resample, values);
  }

 private:
  const Resampler& resampler_;
  const BootstrapOptions& options_;
  std::size_t threads_;
  std::size_t chunk_;
  std::unique_ptr<const ResamplePlan> shared_;
};

}  // namespace moetrace::stats
