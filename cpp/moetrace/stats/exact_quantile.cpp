#include "moetrace/stats/exact_quantile.h"

#include <algorithm>
#include <cmath>

#include "moetrace/stats/interval.h"

namespace moetrace::stats {

namespace {

constexpr std::size_t kLongRun = 8;

}  // namespace

std::optional<double> ExactQuantile::operator()(const KnownRange& range, double level) const {
  const Place place = place_of(level, count_);
  const std::size_t last = place.rank + (place.part > 0.0 ? 1 : 0);
  if (place.rank < range.offset || last >= range.offset + range.keys.size()) return std::nullopt;

  const auto nth = range.keys.begin() + static_cast<std::ptrdiff_t>(place.rank - range.offset);
  std::nth_element(range.keys.begin(), nth, range.keys.end());
  const double value = value_of(*nth);
  const double next = last == place.rank ? value : value_of(*std::min_element(nth + 1, range.keys.end()));
  const double low = value - window_ - relative_ * std::fabs(value);
  const double high = next + window_ + relative_ * std::fabs(next);
  if (low <= range.from || high >= range.to) return std::nullopt;

  std::size_t below = range.offset;
  const auto apart = std::partition(range.keys.begin(), range.keys.end(), [&](NearKey key) {
    return value_of(key) >= low && value_of(key) <= high;
  });
  for (auto key = apart; key != range.keys.end(); ++key) below += value_of(*key) < low;
  std::sort(range.keys.begin(), apart);
  std::vector<double> exact = evaluate({range.keys.begin(), apart});
  std::sort(exact.begin(), exact.end());
  return between(exact[place.rank - below], exact[last - below], place.part);
}

std::vector<double> ExactQuantile::evaluate(std::span<const NearKey> keys) const {
  std::vector<double> values;
  values.reserve(keys.size());
  for (std::size_t begin = 0, end = 0; begin < keys.size(); begin = end) {
    while (end < keys.size() && value_of(keys[end]) == value_of(keys[begin])) ++end;
    const bool long_run = end - begin > kLongRun;
    for (std::size_t i = begin; i < end; ++i) {
      values.push_back(long_run && i > begin ? values.back() : exact_(resample_of(keys[i])));
    }
  }
  return values;
}

}  // namespace moetrace::stats
