#include "moetrace/stats/resample.h"

#include <algorithm>
#include <stdexcept>

#include "moetrace/stats/random.h"

namespace moetrace::stats {

Resampler::Resampler(std::size_t cases, const Grouping& grouping)
    : rows_(grouping.draws_clusters() ? grouping.clusters : cases),
      sizes_(cluster_sizes(cases, grouping.labels, grouping.clusters)) {
  if (cases == 0) throw std::invalid_argument("there are no cases to resample");
  if (grouping.labels.empty() || !grouping.two_stage) return;
  members_.resize(grouping.clusters);
  for (std::size_t row = 0; row < cases; ++row) {
    members_[static_cast<std::size_t>(grouping.labels[row])].push_back(static_cast<std::uint32_t>(row));
  }
}

std::size_t Resampler::bytes_of_resample() const noexcept {
  return rows_ * sizeof(std::uint32_t) + sizeof(std::size_t) + sizeof(double);
}

Draws Resampler::draw(std::uint64_t seed, std::uint64_t first, std::size_t count) const {
  Draws out;
  out.rows.reserve(count * rows_);
  std::vector<std::uint32_t> counts(rows_);
  for (std::size_t i = 0; i < count; ++i) {
    out.cases.push_back(count_rows(seed, first + i, counts));
    for (std::size_t row = 0; row < rows_; ++row) {
      for (std::uint32_t k = 0; k < counts[row]; ++k) out.rows.push_back(static_cast<std::uint32_t>(row));
    }
    out.ends.push_back(out.rows.size());
  }
  return out;
}

/// counts[row] = how often the row is in the resample; returns how many cases the resample holds.
double Resampler::count_rows(std::uint64_t seed, std::uint64_t resample,
                             std::span<std::uint32_t> counts) const {
  std::fill(counts.begin(), counts.end(), 0U);
  const Stream outer(seed, Purpose::resample, resample);
  const Stream inner(seed, Purpose::within_cluster, resample);
  std::vector<std::uint32_t> units(sizes_.size());
  outer.fill_below(static_cast<std::uint32_t>(units.size()), units);
  std::uint32_t position = 0;  // of the case within the resample
  double cases = 0.0;
  for (const std::uint32_t unit : units) {
    cases += sizes_[unit];
    if (members_.empty()) {
      ++counts[unit];
      continue;
    }
    const auto& own = members_[unit];
    for (std::size_t k = 0; k < own.size(); ++k, ++position) {
      ++counts[own[inner.below(static_cast<std::uint32_t>(own.size()), position)]];
    }
  }
  return cases;
}

}  // namespace moetrace::stats
