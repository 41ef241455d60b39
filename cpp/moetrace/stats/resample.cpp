#include "moetrace/stats/resample.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "moetrace/stats/random.h"

namespace moetrace::stats {

Resampler Resampler::of_cases(std::size_t cases) {
  if (cases == 0) throw std::invalid_argument("there are no cases to resample");
  Resampler made;
  made.rows_ = cases;
  return made;
}

Resampler Resampler::of_clusters(Labels labels, std::size_t clusters) {
  Resampler made;
  made.rows_ = clusters;
  made.sizes_ = cluster_sizes(labels.size(), labels, clusters);
  made.constant_size_ =
      std::adjacent_find(made.sizes_.begin(), made.sizes_.end(), std::not_equal_to<>()) == made.sizes_.end();
  return made;
}

Resampler Resampler::two_stage(Labels labels, std::size_t clusters) {
  Resampler made = of_clusters(labels, clusters);
  made.rows_ = labels.size();
  made.members_.resize(clusters);
  for (std::size_t row = 0; row < labels.size(); ++row) {
    made.members_[static_cast<std::size_t>(labels[row])].push_back(static_cast<std::uint32_t>(row));
  }
  return made;
}

double Resampler::mean_of(std::uint64_t seed, std::uint64_t b, const double* values) const {
  std::vector<std::uint32_t> counts(rows_);
  const double size = draw(seed, b, counts);
  return std::inner_product(counts.begin(), counts.end(), values, 0.0) / size;
}

std::size_t Resampler::most_draws() const noexcept {
  if (members_.empty()) return rows_;
  const auto largest = std::max_element(sizes_.begin(), sizes_.end());
  return sizes_.size() * static_cast<std::size_t>(*largest);
}

double Resampler::draw(std::uint64_t seed, std::uint64_t b, std::span<std::uint32_t> counts) const {
  std::fill(counts.begin(), counts.end(), 0U);
  const Stream outer(seed, Purpose::resample, b);
  const Stream inner(seed, Purpose::within_cluster, b);
  const std::size_t units = sizes_.empty() ? rows_ : sizes_.size();
  const auto n = static_cast<std::uint32_t>(units);
  std::uint32_t chosen[64];
  std::uint32_t position = 0;  // of the case within the resample
  double size = 0.0;
  for (std::size_t begin = 0; begin < units; begin += std::size(chosen)) {
    const std::span<std::uint32_t> some(chosen, std::min(std::size(chosen), units - begin));
    outer.fill_below(n, some, static_cast<std::uint32_t>(begin));
    for (const std::uint32_t unit : some) {
      size += sizes_.empty() ? 1.0 : sizes_[unit];
      if (members_.empty()) {
        ++counts[unit];
        continue;
      }
      const auto& cases = members_[unit];
      for (std::size_t k = 0; k < cases.size(); ++k, ++position) {
        ++counts[cases[inner.below(static_cast<std::uint32_t>(cases.size()), position)]];
      }
    }
  }
  return size;
}

std::size_t plan_bytes(std::size_t rows) {
  // Two patterns a group; and of every count about one in fifty has a rest.
  return 2 * ceil_div(rows, kGroupRows) + sizeof(double) + rows / 50 * 16 + 16;
}

ResamplePlan::ResamplePlan(const Resampler& resampler, std::uint64_t seed, std::uint64_t first,
                           std::size_t count, std::size_t threads, const Interrupt& interrupt)
    : count_(count),
      rows_(resampler.rows()),
      groups_(ceil_div(resampler.rows(), kGroupRows)),
      patterns_(ceil_div(count, kSumsOfBundle) * groups_ * kBundle),
      sizes_(count) {
  rests_.resize(ceil_div(count, kPart));
  parallel_for(rests_.size(), threads, interrupt, [&](std::size_t task, Worker&) {
    const std::size_t begin = task * kPart;
    fill(resampler, seed, first, begin, std::min(count, begin + kPart), rests_[task]);
  });
}

void ResamplePlan::fill(const Resampler& resampler, std::uint64_t seed, std::uint64_t first,
                        std::size_t begin, std::size_t end, std::vector<Rest>& rests) {
  std::vector<std::uint32_t> counts(groups_ * kGroupRows, 0U);
  const std::span<std::uint32_t> drawn(counts.data(), resampler.rows());
  for (std::size_t b = begin; b < end; ++b) {
    sizes_[b] = resampler.draw(seed, first + b, drawn);
    std::uint8_t* to = patterns_.data() + b / kSumsOfBundle * groups_ * kBundle + b % kSumsOfBundle * 2;
    for (std::size_t group = 0; group < groups_; ++group, to += kBundle) {
      unsigned low = 0;
      unsigned high = 0;
      for (std::size_t k = 0; k < kGroupRows; ++k) {
        const std::uint32_t count = counts[group * kGroupRows + k];
        low |= (count & 1U) << k;
        high |= (count >> 1 & 1U) << k;
        if (count >= 4) {
          rests.push_back({static_cast<std::uint32_t>(b - begin),
                           static_cast<std::uint32_t>(group * kGroupRows + k),
                           static_cast<std::int32_t>(count & ~3U)});
        }
      }
      to[0] = static_cast<std::uint8_t>(low * kLanes);
      to[1] = static_cast<std::uint8_t>(high * kLanes);
    }
  }
}

template <class T>
void ResamplePlan::weighted_sums(const Slice& slice, const T* block, AlignedBuffer<T>& table, T* sums) const {
  constexpr std::size_t kWidth = kLineBytes / sizeof(T);
  const SumKernels<T>& run = sum_kernels<T>(kernels());
  T* entries = table.reserve(kCachedGroups * kTableRows * kWidth);
  const std::size_t bundle_bytes = groups_ * kBundle;
  const std::uint8_t* patterns = patterns_.data() + slice.first / kSumsOfBundle * bundle_bytes;
  for (std::size_t group = 0; group < groups_; group += kCachedGroups) {
    const std::size_t some = std::min(kCachedGroups, groups_ - group);
    run.fill_tables(block + group * kGroupRows * kWidth, some, Weights::zero_one, entries);
    run.sum_counts(entries, some, patterns + group * kBundle, bundle_bytes,
                   ceil_div(slice.count, kSumsOfBundle), group > 0, sums);
  }
  const std::size_t parts = ceil_div(slice.count, kPart);
  for (std::size_t part = 0; part < parts; ++part) {
    const auto& rests = rests_[slice.first / kPart + part];
    run.add_rests(block, rests.data(), rests.size(), sums + part * kPart * kWidth);
  }
}

template void ResamplePlan::weighted_sums(const Slice&, const double*, AlignedBuffer<double>&, double*) const;
template void ResamplePlan::weighted_sums(const Slice&, const std::int32_t*, AlignedBuffer<std::int32_t>&,
                                          std::int32_t*) const;

double ResamplePlan::mean_of(std::size_t resample, const double* values) const {
  // Four bits spread over the low bits of four bytes.
  const auto spread = [](unsigned bits) { return (bits * 0x00204081U) & 0x01010101U; };
  const std::uint8_t* patterns =
      patterns_.data() + resample / kSumsOfBundle * groups_ * kBundle + resample % kSumsOfBundle * 2;
  double sum = 0.0;
  for (std::size_t row = 0; row < rows_; ++row) {
    const std::size_t k = row % kGroupRows;
    const std::uint8_t* pair = patterns + row / kGroupRows * kBundle;
    const std::uint32_t counts = spread(pair[0] / kLanes) + 2 * spread(pair[1] / kLanes);
    sum += static_cast<double>(counts >> (8 * k) & 0xFFU) * values[row];
  }
  const auto& rests = rests_[resample / kPart];
  const auto number = static_cast<std::uint32_t>(resample % kPart);
  auto rest = std::lower_bound(rests.begin(), rests.end(), number,
                               [](const Rest& one, std::uint32_t at) { return one.sum < at; });
  for (; rest != rests.end() && rest->sum == number; ++rest) sum += rest->weight * values[rest->row];
  return sum / sizes_[resample];
}

}  // namespace moetrace::stats
