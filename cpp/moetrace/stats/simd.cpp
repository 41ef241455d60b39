#include "moetrace/stats/simd.h"

#include <atomic>
#include <stdexcept>
#include <string>

namespace moetrace::stats {

extern const Kernels kernels_portable;
#ifdef MOETRACE_X86_KERNELS
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> sets = {&kernels_portable};
#ifdef MOETRACE_X86_KERNELS
  if (__builtin_cpu_supports("avx2")) sets.push_back(&kernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    sets.push_back(&kernels_avx512);
  }
#endif
  return sets;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> current{available().back()};
  return current;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

std::vector<std::string_view> instruction_sets() {
  std::vector<std::string_view> names;
  for (const Kernels* set : available()) names.emplace_back(set->name);
  return names;
}

void use_instruction_set(std::string_view name) {
  std::string found;
  for (const Kernels* set : available()) {
    if (name == set->name || (name.empty() && set == available().back())) {
      chosen() = set;
      return;
    }
    found += std::string(found.empty() ? "" : ", ") + set->name;
  }
  throw std::invalid_argument("no instruction set '" + std::string(name) + "' here; found " + found);
}

}  // namespace moetrace::stats
