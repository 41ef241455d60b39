// Part of kernel_body.h: sums of rows from tables of subsets, as doubles and as whole numbers.

namespace moetrace::stats {
namespace {

/// A register full of T.
template <class T>
struct Register;
template <>
struct Register<double> {
  using Type = Part;
};
template <>
struct Register<std::int32_t> {
  using Type = NarrowPart;
};
template <class T>
using RegisterOf = typename Register<T>::Type;

template <class T>
MOETRACE_INLINE const RegisterOf<T>& at(const T* line, std::size_t p) {
  return reinterpret_cast<const RegisterOf<T>*>(line)[p];
}
template <class T>
MOETRACE_INLINE RegisterOf<T>& at(T* line, std::size_t p) {
  return reinterpret_cast<RegisterOf<T>*>(line)[p];
}

template <class T>
constexpr std::size_t kLanesOf = kLineBytes / sizeof(T);

template <class T>
void fill_tables(const T* rows, std::size_t groups, Weights weights, T* table) {
  for (std::size_t group = 0; group < groups; ++group) {
    const T* row = rows + group * kGroupRows * kLanesOf<T>;
    T* entry = table + group * kTableRows * kLanesOf<T>;
    for (std::size_t p = 0; p < kParts; ++p) {
      RegisterOf<T> start = {};
      if (weights == Weights::signs) {
        for (std::size_t k = 0; k < kGroupRows; ++k) start -= at(row + k * kLanesOf<T>, p);
      }
      at(entry, p) = start;
      for (std::size_t k = 0, filled = 1; k < kGroupRows; ++k, filled *= 2) {
        RegisterOf<T> step = at(row + k * kLanesOf<T>, p);
        if (weights == Weights::signs) step += step;
        for (std::size_t subset = 0; subset < filled; ++subset) {
          at(entry + (filled + subset) * kLanesOf<T>, p) = at(entry + subset * kLanesOf<T>, p) + step;
        }
      }
    }
  }
}

/// Patterns whose sums are held in registers at the same time; the order of the additions into each doesn't
/// depend on it.
constexpr std::size_t kTogether = kVector;

MOETRACE_INLINE std::uint64_t fetch(const std::uint8_t* bundle) {
  std::uint64_t word;
  __builtin_memcpy(&word, bundle, sizeof(word));
  return word;
}

/// How far to shift a fetched word for its k-th byte.
constexpr std::size_t shift_of(std::size_t k) {
  return 8 * (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? k : kBundle - 1 - k);
}

/// Sums of the patterns first ... first + kTogether - 1 of a bundle. One fetch serves all of them, which
/// leaves the load ports to the table.
template <class T>
MOETRACE_INLINE void sum_patterns(const T* table, std::size_t groups, const std::uint8_t* bundle,
                                  std::size_t first, RegisterOf<T> (&sum)[kTogether][kParts]) {
  const char* base = reinterpret_cast<const char*>(table);
  for (std::size_t group = 0; group < groups; ++group, base += kTableRows * kLineBytes) {
    const std::uint64_t word = fetch(bundle + group * kBundle);
    for (std::size_t i = 0; i < kTogether; ++i) {
      const std::uint64_t pattern = word >> shift_of(first + i) & 0xFF;
      const auto* entry = reinterpret_cast<const RegisterOf<T>*>(base + pattern * 8);
      for (std::size_t p = 0; p < kParts; ++p) sum[i][p] += entry[p];
    }
  }
}

template <class T>
MOETRACE_INLINE void put(T* sums, std::size_t p, const RegisterOf<T>& value, bool add) {
  at(sums, p) = add ? at(sums, p) + value : value;
}

template <class T>
void sum_signs(const T* table, std::size_t groups, const std::uint8_t* patterns, std::size_t stride,
               std::size_t bundles, bool add, T* sums) {
  for (std::size_t b = 0; b < bundles; ++b, patterns += stride, sums += kBundle * kLanesOf<T>) {
    for (std::size_t first = 0; first < kBundle; first += kTogether) {
      RegisterOf<T> sum[kTogether][kParts] = {};
      sum_patterns(table, groups, patterns, first, sum);
      for (std::size_t i = 0; i < kTogether; ++i) {
        for (std::size_t p = 0; p < kParts; ++p) put(sums + (first + i) * kLanesOf<T>, p, sum[i][p], add);
      }
    }
  }
}

template <class T>
void sum_counts(const T* table, std::size_t groups, const std::uint8_t* patterns, std::size_t stride,
                std::size_t bundles, bool add, T* sums) {
  for (std::size_t b = 0; b < bundles; ++b, patterns += stride, sums += kBundle / 2 * kLanesOf<T>) {
    for (std::size_t first = 0; first < kBundle; first += kTogether) {
      RegisterOf<T> sum[kTogether][kParts] = {};
      sum_patterns(table, groups, patterns, first, sum);
      for (std::size_t i = 0; i < kTogether; i += 2) {
        T* to = sums + (first + i) / 2 * kLanesOf<T>;
        for (std::size_t p = 0; p < kParts; ++p) put(to, p, sum[i][p] + (sum[i + 1][p] + sum[i + 1][p]), add);
      }
    }
  }
}

template <class T>
void add_rests(const T* rows, const Rest* rests, std::size_t count, T* sums) {
  for (std::size_t i = 0; i < count; ++i) {
    const Rest rest = rests[i];
    for (std::size_t p = 0; p < kParts; ++p) {
      at(sums + rest.sum * kLanesOf<T>, p) +=
          at(rows + rest.row * kLanesOf<T>, p) * static_cast<T>(rest.weight);
    }
  }
}

}  // namespace
}  // namespace moetrace::stats
