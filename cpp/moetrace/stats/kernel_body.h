// The inner loops. Included once by each kernels_*.cpp, which is compiled for one instruction set and
// defines MOETRACE_KERNELS (the variable), MOETRACE_KERNELS_NAME and MOETRACE_VECTOR (doubles in a
// register). Nothing inline of the standard library or of Eigen may be called here: the linker would keep
// one copy for all instruction sets.

#include "moetrace/stats/simd.h"

#if MOETRACE_VECTOR == 8
#include <immintrin.h>
#endif

#define MOETRACE_INLINE inline __attribute__((always_inline))

namespace moetrace::stats {
namespace {

constexpr std::size_t kVector = MOETRACE_VECTOR;
constexpr std::size_t kVectorBytes = kVector * sizeof(double);
constexpr std::size_t kParts = kLineBytes / kVectorBytes;  // registers that a line takes

using Part = double __attribute__((vector_size(kVectorBytes), may_alias));
using Counts = std::int64_t __attribute__((vector_size(kVectorBytes), may_alias));
using NarrowPart = std::int32_t __attribute__((vector_size(kVectorBytes), may_alias));
using FloatPart = float __attribute__((vector_size(kVectorBytes), may_alias));
using HalfPart = std::int32_t __attribute__((vector_size(kVectorBytes / 2), may_alias));
using HalfFloatPart = float __attribute__((vector_size(kVectorBytes / 2), may_alias));

MOETRACE_INLINE const Part& part(const double* at, std::size_t p) {
  return reinterpret_cast<const Part*>(at)[p];
}
MOETRACE_INLINE Part& part(double* at, std::size_t p) { return reinterpret_cast<Part*>(at)[p]; }
MOETRACE_INLINE Counts& counts(std::int64_t* at, std::size_t p) { return reinterpret_cast<Counts*>(at)[p]; }
MOETRACE_INLINE const NarrowPart& narrow_part(const std::int32_t* at, std::size_t p) {
  return reinterpret_cast<const NarrowPart*>(at)[p];
}
MOETRACE_INLINE NarrowPart& narrow_part(std::int32_t* at, std::size_t p) {
  return reinterpret_cast<NarrowPart*>(at)[p];
}
MOETRACE_INLINE const FloatPart& float_part(const float* at, std::size_t p) {
  return reinterpret_cast<const FloatPart*>(at)[p];
}
MOETRACE_INLINE const HalfPart& half_part(const std::int32_t* at, std::size_t p) {
  return reinterpret_cast<const HalfPart*>(at)[p];
}
MOETRACE_INLINE HalfPart& half_part(std::int32_t* at, std::size_t p) {
  return reinterpret_cast<HalfPart*>(at)[p];
}

}  // namespace
}  // namespace moetrace::stats

#include "moetrace/stats/kernel_scan.h"
#include "moetrace/stats/kernel_sums.h"

namespace moetrace::stats {

extern const Kernels MOETRACE_KERNELS;
const Kernels MOETRACE_KERNELS = {
    MOETRACE_KERNELS_NAME,
    {fill_tables<double>, sum_signs<double>, sum_counts<double>, add_rests<double>},
    {fill_tables<std::int32_t>, sum_signs<std::int32_t>, sum_counts<std::int32_t>, add_rests<std::int32_t>},
    running_maximum,
    running_maximum_narrow,
    tally,
    tally_narrow,
    collect_outside,
    find_in_windows};

}  // namespace moetrace::stats
