#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moetrace::stats {

/// What a draw is for; draws of different purposes never share a counter.
enum class Purpose : std::uint32_t { resample = 1, within_cluster = 2, flip = 3, sample = 4 };

/// Draws of one stream: a function of (seed, purpose, stream, index) and of nothing else, so the order
/// in which they are asked for, the thread and the batch can't matter.
///
/// The Philox key is the seed; the counter is (index / 4, stream low, stream high, purpose + 256 * attempt).
class Stream {
 public:
  Stream(std::uint64_t seed, Purpose purpose, std::uint64_t stream) noexcept
      : seed_(seed), stream_(stream), purpose_(static_cast<std::uint32_t>(purpose)) {}

  /// The word of this index, uniform over 32 bits.
  std::uint32_t word(std::uint32_t index, std::uint32_t attempt = 0) const noexcept;

  /// An integer of [0, n), exactly uniform: multiply and shift, and a word that falls in the uneven
  /// remainder is drawn again from the next attempt's counter. n >= 1.
  std::uint32_t below(std::uint32_t n, std::uint32_t index) const noexcept;

  /// out[i] = below(n, first + i), four to a block. `first` is a multiple of 4.
  void fill_below(std::uint32_t n, std::span<std::uint32_t> out, std::uint32_t first = 0) const noexcept;

  /// out[i] = word(i).
  void fill_words(std::span<std::uint32_t> out) const noexcept;

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint32_t purpose_;
};

/// k distinct integers of [0, n) in random order, every ordered choice equally likely; a function of
/// (n, k, seed, stream) alone. Throws std::invalid_argument unless 0 <= k <= n < 2^32.
std::vector<std::int64_t> sample_without_replacement(std::int64_t n, std::int64_t k, std::uint64_t seed,
                                                     std::uint64_t stream);

}  // namespace moetrace::stats
