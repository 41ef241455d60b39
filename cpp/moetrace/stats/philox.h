#pragma once

#include <array>
#include <cstdint>

namespace moetrace::stats {

/// Philox 4x32-10 (Salmon et al., SC 2011): four 32-bit words from a counter and a key, without state.
inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                               std::array<std::uint32_t, 2> key) noexcept {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t even = 0xD2511F53ULL * counter[0];
    const std::uint64_t odd = 0xCD9E8D57ULL * counter[2];
    counter = {static_cast<std::uint32_t>(odd >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(odd),
               static_cast<std::uint32_t>(even >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(even)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

}  // namespace moetrace::stats
