// Part of kernel_body.h: what is read off the sums of many flips or resamples.

namespace moetrace::stats {
namespace {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MOETRACE_SHUFFLE(mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef MOETRACE_SHUFFLE
#define MOETRACE_SHUFFLE(mask, a, b, ...) __builtin_shuffle(a, b, mask{__VA_ARGS__})
#endif

MOETRACE_INLINE Part absolute(const Part& value) {
  return reinterpret_cast<Part>(reinterpret_cast<Counts>(value) & INT64_MAX);  // without the sign bit
}

template <class T>
MOETRACE_INLINE void take_larger(T& value, const T& other) {
  value = other > value ? other : value;
}

/// Each lane becomes the maximum of itself and those before it. Values are at least 0, so that the zeros
/// that are shifted in change nothing.
MOETRACE_INLINE void take_maxima_along(Part& value) {
  const Part zero = {};
#if MOETRACE_VECTOR == 8
  take_larger(value, MOETRACE_SHUFFLE(Counts, value, zero, 8, 0, 1, 2, 3, 4, 5, 6));
  take_larger(value, MOETRACE_SHUFFLE(Counts, value, zero, 8, 8, 0, 1, 2, 3, 4, 5));
  take_larger(value, MOETRACE_SHUFFLE(Counts, value, zero, 8, 8, 8, 8, 0, 1, 2, 3));
#elif MOETRACE_VECTOR == 4
  take_larger(value, MOETRACE_SHUFFLE(Counts, value, zero, 4, 0, 1, 2));
  take_larger(value, MOETRACE_SHUFFLE(Counts, value, zero, 4, 4, 0, 1));
#else
  take_larger(value, MOETRACE_SHUFFLE(Counts, value, zero, 2, 0));
#endif
}

MOETRACE_INLINE void take_maxima_along(FloatPart& value) {
  const FloatPart zero = {};
#if MOETRACE_VECTOR == 8
  take_larger(
      value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14));
  take_larger(
      value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 16, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13));
  take_larger(
      value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 16, 16, 16, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
  take_larger(value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 16, 16, 16, 16, 16, 16, 16, 16, 0, 1, 2, 3, 4,
                                      5, 6, 7));
#elif MOETRACE_VECTOR == 4
  take_larger(value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 8, 0, 1, 2, 3, 4, 5, 6));
  take_larger(value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 8, 8, 0, 1, 2, 3, 4, 5));
  take_larger(value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 8, 8, 8, 8, 0, 1, 2, 3));
#else
  take_larger(value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 4, 0, 1, 2));
  take_larger(value, MOETRACE_SHUFFLE(NarrowPart, value, zero, 4, 4, 0, 1));
#endif
}

void running_maximum(const double* sums, std::size_t count, const double* threshold, double* running,
                     std::int64_t* at_least, std::int64_t* running_at_least) {
  for (std::size_t p = 0; p < kParts; ++p) {
    const Part limit = part(threshold, p);
    Counts own = counts(at_least, p);
    Counts joint = counts(running_at_least, p);
    for (std::size_t i = 0; i < count; ++i) {
      Part size = absolute(part(sums + i * kLanes, p));
      own -= size >= limit;
      take_maxima_along(size);
      take_larger(size, running[i] - Part{});  // one value in all lanes
      joint -= size >= limit;
      running[i] = size[kVector - 1];
    }
    counts(at_least, p) = own;
    counts(running_at_least, p) = joint;
  }
}

void running_maximum_narrow(const std::int32_t* sums, std::size_t count, const std::int32_t* threshold,
                            const float* unit, const float* running_threshold, float* running,
                            std::int64_t* at_least, std::int64_t* running_at_least) {
  constexpr std::size_t kWidth = 2 * kVector;
  for (std::size_t p = 0; p < kParts; ++p) {
    const NarrowPart limit = narrow_part(threshold, p);
    const FloatPart scale = float_part(unit, p);
    const FloatPart joint_limit = float_part(running_threshold, p);
    NarrowPart own = {};
    NarrowPart joint = {};
    for (std::size_t i = 0; i < count; ++i) {
      NarrowPart whole = narrow_part(sums + i * kNarrowLanes, p);
      take_larger(whole, -whole);
      own -= whole >= limit;
      FloatPart size = __builtin_convertvector(whole, FloatPart) * scale;
      take_maxima_along(size);
      take_larger(size, running[i] - FloatPart{});  // one value in all lanes
      joint -= size >= joint_limit;
      running[i] = size[kWidth - 1];
    }
    for (std::size_t lane = 0; lane < kWidth; ++lane) {
      at_least[p * kWidth + lane] += own[lane];
      running_at_least[p * kWidth + lane] += joint[lane];
    }
  }
}

void tally(const double* values, std::size_t count, const double* origin, const double* low,
           const double* high, double* sum, double* squares, double* cubes, std::int64_t* below,
           std::int64_t* not_above) {
  for (std::size_t p = 0; p < kParts; ++p) {
    const Part from = part(origin, p);
    const Part lower = part(low, p);
    const Part upper = part(high, p);
    Part first = {};
    Part second = {};
    Part third = {};
    Counts less = {};
    Counts less_or_equal = {};
    for (std::size_t i = 0; i < count; ++i) {
      const Part value = part(values + i * kLanes, p);
      const Part apart = value - from;
      const Part square = apart * apart;
      first += apart;
      second += square;
      third += square * apart;
      less -= value < lower;
      less_or_equal -= value <= upper;
    }
    part(sum, p) = first;
    part(squares, p) = second;
    part(cubes, p) = third;
    counts(below, p) = less;
    counts(not_above, p) = less_or_equal;
  }
}

void collect_outside(const double* values, std::size_t count, const double* centre, const double* reach,
                     double* const* out, std::int64_t* taken) {
  alignas(64) std::int64_t outside[kLanes];
  alignas(64) std::int64_t found[kLanes] = {};
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t p = 0; p < kParts; ++p) {
      const Part apart = part(values + i * kLanes, p) - part(centre, p);
      counts(outside, p) = (apart >= part(reach, p)) | (-apart >= part(reach, p));
    }
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      out[lane][found[lane]] = values[i * kLanes + lane];
      found[lane] -= outside[lane];
    }
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) taken[lane] = found[lane];
}

void tally_narrow(std::int32_t* values, std::size_t count, const double* weight, const std::int32_t* tie,
                  double* sum, double* squares, double* cubes, std::int64_t* below, std::int64_t* not_above) {
  for (std::size_t h = 0; h < 2 * kParts; ++h) {  // as many lanes as there are doubles in a register
    const HalfPart band = half_part(tie, h);
    Part first = {};
    Part second = {};
    Part third = {};
    HalfPart less = {};
    HalfPart less_or_equal = {};
    for (std::size_t i = 0; i < count; ++i) {
      HalfPart& whole = half_part(values + i * kNarrowLanes, h);
      less -= whole < -band;
      less_or_equal -= whole <= band;
      Part value = __builtin_convertvector(whole, Part);
      if (weight != nullptr) value *= weight[i] - Part{};
      const Part square = value * value;
      first += value;
      second += square;
      third += square * value;
      whole = reinterpret_cast<HalfPart>(__builtin_convertvector(value, HalfFloatPart));
    }
    part(sum, h) = first;
    part(squares, h) = second;
    part(cubes, h) = third;
    for (std::size_t lane = 0; lane < kVector; ++lane) {
      below[h * kVector + lane] = less[lane];
      not_above[h * kVector + lane] = less_or_equal[lane];
    }
  }
}

/// Appends the lanes of a line that are marked with -1 to places and found; returns the new number.
MOETRACE_INLINE std::size_t append_marked(const float* line, std::size_t row, const std::int32_t* marked,
                                          std::uint32_t* places, float* found, std::size_t number) {
#if MOETRACE_VECTOR == 8
  alignas(kLineBytes) static constexpr std::int32_t kLane[] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                               8, 9, 10, 11, 12, 13, 14, 15};
  const __mmask16 mask = _mm512_movepi32_mask(_mm512_load_si512(marked));
  const __m512i place =
      _mm512_add_epi32(_mm512_load_si512(kLane), _mm512_set1_epi32(static_cast<int>(row * kNarrowLanes)));
  _mm512_storeu_si512(places + number, _mm512_maskz_compress_epi32(mask, place));
  _mm512_storeu_ps(found + number, _mm512_maskz_compress_ps(mask, _mm512_load_ps(line)));
  return number + static_cast<std::size_t>(__builtin_popcount(mask));
#else
  for (std::size_t lane = 0; lane < kNarrowLanes; ++lane) {
    places[number] = static_cast<std::uint32_t>(row * kNarrowLanes + lane);
    found[number] = float_part(line, lane / (2 * kVector))[lane % (2 * kVector)];
    number -= static_cast<std::size_t>(std::ptrdiff_t{marked[lane]});
  }
  return number;
#endif
}

std::size_t find_in_windows(const float* values, std::size_t count, const float (*low)[kNarrowLanes],
                            const float (*high)[kNarrowLanes], std::uint32_t* places, float* found,
                            std::int64_t (*below)[kNarrowLanes]) {
  alignas(kLineBytes) std::int32_t inside[kNarrowLanes];
  alignas(kLineBytes) std::int32_t less[2][kNarrowLanes] = {};
  std::size_t number = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const float* line = values + i * kNarrowLanes;
    for (std::size_t p = 0; p < kParts; ++p) {
      const FloatPart value = float_part(line, p);
      const NarrowPart below_first = value < float_part(low[0], p);
      const NarrowPart below_second = value < float_part(low[1], p);
      narrow_part(less[0], p) += below_first;
      narrow_part(less[1], p) += below_second;
      narrow_part(inside, p) = (~below_first & (value <= float_part(high[0], p))) |
                               (~below_second & (value <= float_part(high[1], p)));
    }
    number = append_marked(line, i, inside, places, found, number);
  }
  for (std::size_t lane = 0; lane < kNarrowLanes; ++lane) {
    below[0][lane] = -less[0][lane];
    below[1][lane] = -less[1][lane];
  }
  return number;
}

}  // namespace
}  // namespace moetrace::stats
