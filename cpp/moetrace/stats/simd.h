#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moetrace::stats {

/// Bytes of a cache line, of a row of a block, and of an entry of a table.
inline constexpr std::size_t kLineBytes = 64;
/// Columns that are worked on together, side by side in memory, as doubles.
inline constexpr std::size_t kLanes = kLineBytes / sizeof(double);
/// And as whole numbers of 32 bits.
inline constexpr std::size_t kNarrowLanes = kLineBytes / sizeof(std::int32_t);
/// Rows whose weighted sums are looked up at once: all 16 subsets, or all 16 choices of sign, in a table.
inline constexpr std::size_t kGroupRows = 4;
inline constexpr std::size_t kTableRows = 16;
/// Groups whose tables (1 KiB each) are used together, so that they stay in the first-level cache.
inline constexpr std::size_t kCachedGroups = 32;
/// Patterns that are fetched together.
inline constexpr std::size_t kBundle = 8;

/// Which multiples of a row a table holds: 0 and 1, or -1 and +1.
enum class Weights { zero_one, signs };

/// A row that a sum needs more often than the two bits of its count say.
struct Rest {
  std::uint32_t sum;
  std::uint32_t row;
  std::int32_t weight;
};

/// Sums of rows of a block, for T double or std::int32_t. A row has kLineBytes.
///
/// A `pattern` is a byte that names an entry of a group's table: 8 times the subset of the group's four rows,
/// bit k standing for row k. Patterns come in bundles of eight: [group][kBundle]. A bundle holds one pattern
/// each for eight sums (signs), or two each for four sums: the low bits of their counts, then the high bits.
template <class T>
struct SumKernels {
  /// rows [4 * groups][lanes] -> table [groups][kTableRows][lanes].
  void (*fill_tables)(const T* rows, std::size_t groups, Weights weights, T* table);

  /// For each bundle of one pattern a sum: sums[i] = sum over g of table[g][pattern of i]; for two patterns a
  /// sum, twice that of the second is added. `stride` is the distance between bundles. With `add`, onto what
  /// sums [bundles * 8 or 4][lanes] holds.
  void (*sum_signs)(const T* table, std::size_t groups, const std::uint8_t* patterns, std::size_t stride,
                    std::size_t bundles, bool add, T* sums);
  void (*sum_counts)(const T* table, std::size_t groups, const std::uint8_t* patterns, std::size_t stride,
                     std::size_t bundles, bool add, T* sums);

  /// sums[rest.sum] += rest.weight * rows[rest.row], in order.
  void (*add_rests)(const T* rows, const Rest* rests, std::size_t count, T* sums);
};

/// The inner loops, compiled once for every instruction set. All of them add the same numbers in the same
/// order and contract nothing, so the results are the same to the last bit.
struct Kernels {
  const char* name;
  SumKernels<double> wide;
  SumKernels<std::int32_t> narrow;

  /// For each i: at_least[lane] counts |sums[i][lane]| >= threshold[lane]; then running[i] becomes the
  /// maximum of itself and |sums[i][0..lane]|, and running_at_least[lane] counts that maximum likewise.
  void (*running_maximum)(const double* sums, std::size_t count, const double* threshold, double* running,
                          std::int64_t* at_least, std::int64_t* running_at_least);

  /// The same for whole numbers, each lane in its own unit: they are compared with `threshold` as they are,
  /// and multiplied by `unit` for the maximum, which is compared with `running_threshold`.
  void (*running_maximum_narrow)(const std::int32_t* sums, std::size_t count, const std::int32_t* threshold,
                                 const float* unit, const float* running_threshold, float* running,
                                 std::int64_t* at_least, std::int64_t* running_at_least);

  /// Per lane over the `count` rows of values: the sums of the powers 1, 2 and 3 of value - origin, and how
  /// many values are below `low`, and how many not above `high`.
  void (*tally)(const double* values, std::size_t count, const double* origin, const double* low,
                const double* high, double* sum, double* squares, double* cubes, std::int64_t* below,
                std::int64_t* not_above);

  /// The same for whole numbers around zero, which become floats in place: each is multiplied by its row's
  /// weight (null: 1) before the powers are taken. Compared as they are with -tie and tie.
  void (*tally_narrow)(std::int32_t* values, std::size_t count, const double* weight, const std::int32_t* tie,
                       double* sum, double* squares, double* cubes, std::int64_t* below,
                       std::int64_t* not_above);

  /// Copies the values of each lane that lie at least `reach` from `centre` to out[lane], in their order;
  /// taken[lane] is their number. out[lane] has room for count values, for it is written to at every step.
  void (*collect_outside)(const double* values, std::size_t count, const double* centre, const double* reach,
                          double* const* out, std::int64_t* taken);

  /// Finds the floats that lie in one of their lane's two windows [low[0], high[0]] and [low[1], high[1]].
  /// Returns their number; `places` gets 16 * row + lane, `found` the floats, in their order, and both have
  /// room for count * kNarrowLanes. below[w][lane] counts the floats that are below window w.
  std::size_t (*find_in_windows)(const float* values, std::size_t count, const float (*low)[kNarrowLanes],
                                 const float (*high)[kNarrowLanes], std::uint32_t* places, float* found,
                                 std::int64_t (*below)[kNarrowLanes]);
};

template <class T>
const SumKernels<T>& sum_kernels(const Kernels& all) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return all.wide;
  } else {
    return all.narrow;
  }
}

/// The best set that this processor has, or the one that was chosen.
const Kernels& kernels();

/// The names of the sets that this processor can run, the best last.
std::vector<std::string_view> instruction_sets();

/// Run on this set from now on ("" for the best). Throws std::invalid_argument for one that isn't there.
void use_instruction_set(std::string_view name);

}  // namespace moetrace::stats
