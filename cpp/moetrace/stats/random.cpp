#include "moetrace/stats/random.h"

#include <array>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "moetrace/stats/philox.h"

namespace moetrace::stats {

namespace {

constexpr std::uint32_t low_half(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t high_half(std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); }

std::array<std::uint32_t, 4> block_of(std::uint64_t seed, std::uint64_t stream, std::uint32_t purpose,
                                      std::uint32_t block, std::uint32_t attempt) noexcept {
  return philox4x32({block, low_half(stream), high_half(stream), purpose + 256U * attempt},
                    {low_half(seed), high_half(seed)});
}

/// How many low products are surplus: 2^32 mod n.
std::uint32_t remainder_of(std::uint32_t n) noexcept { return (0U - n) % n; }

}  // namespace

std::uint32_t Stream::word(std::uint32_t index, std::uint32_t attempt) const noexcept {
  return block_of(seed_, stream_, purpose_, index / 4, attempt)[index % 4];
}

std::uint32_t Stream::below(std::uint32_t n, std::uint32_t index) const noexcept {
  const std::uint32_t surplus = remainder_of(n);
  for (std::uint32_t attempt = 0;; ++attempt) {
    const std::uint64_t product = std::uint64_t{word(index, attempt)} * n;
    if (low_half(product) >= surplus) return high_half(product);
  }
}

void Stream::fill_below(std::uint32_t n, std::span<std::uint32_t> out, std::uint32_t first) const noexcept {
  const std::uint32_t surplus = remainder_of(n);
  for (std::size_t begin = 0; begin < out.size(); begin += 4) {
    const auto index = static_cast<std::uint32_t>(first + begin);
    const auto words = block_of(seed_, stream_, purpose_, index / 4, 0);
    for (std::size_t k = 0; k < 4 && begin + k < out.size(); ++k) {
      const std::uint64_t product = std::uint64_t{words[k]} * n;
      out[begin + k] =
          low_half(product) >= surplus ? high_half(product) : below(n, index + static_cast<std::uint32_t>(k));
    }
  }
}

void Stream::fill_words(std::span<std::uint32_t> out) const noexcept {
  for (std::size_t begin = 0; begin < out.size(); begin += 4) {
    const auto words = block_of(seed_, stream_, purpose_, static_cast<std::uint32_t>(begin / 4), 0);
    for (std::size_t k = 0; k < 4 && begin + k < out.size(); ++k) out[begin + k] = words[k];
  }
}

std::vector<std::int64_t> sample_without_replacement(std::int64_t n, std::int64_t k, std::uint64_t seed,
                                                     std::uint64_t stream) {
  if (n < 0 || n > std::int64_t{std::numeric_limits<std::uint32_t>::max()} || k < 0 || k > n) {
    throw std::invalid_argument("can't draw " + std::to_string(k) + " distinct integers of " +
                                std::to_string(n) + "; expected 0 <= k <= n < 2^32");
  }
  // A Fisher-Yates shuffle stopped after k steps; `moved` holds only the places that differ from the start.
  const Stream draws(seed, Purpose::sample, stream);
  std::unordered_map<std::int64_t, std::int64_t> moved;
  const auto at = [&](std::int64_t place) {
    const auto found = moved.find(place);
    return found == moved.end() ? place : found->second;
  };
  std::vector<std::int64_t> chosen;
  chosen.reserve(static_cast<std::size_t>(k));
  for (std::int64_t step = 0; step < k; ++step) {
    const auto left = static_cast<std::uint32_t>(n - step);
    const std::int64_t place = step + draws.below(left, static_cast<std::uint32_t>(step));
    chosen.push_back(at(place));
    moved[place] = at(step);
  }
  return chosen;
}

}  // namespace moetrace::stats
