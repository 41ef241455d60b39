#include "moetrace/stats/random.h"

#include <pybind11/stl.h>

#include "arrays.h"
#include "parts.h"

namespace moetrace::bindings {

void bind_random(py::module_& module) {
  module.def(
      "sample_without_replacement",
      [](std::int64_t n, std::int64_t k, std::uint64_t seed, std::uint64_t stream) {
        return array_of(stats::sample_without_replacement(n, k, seed, stream));
      },
      py::arg("n"), py::arg("k"), py::arg("seed"), py::arg("stream"),
      "k distinct integers of range(n) in random order; a function of the four arguments alone.");
  module.def(
      "integers",
      [](std::uint32_t n, std::size_t count, std::uint64_t seed, std::uint64_t stream) {
        if (n == 0) throw std::invalid_argument("found n = 0; expected at least 1");
        std::vector<std::uint32_t> values(count);
        stats::Stream(seed, stats::Purpose::sample, stream).fill_below(n, values);
        return array_of(values);
      },
      py::arg("n"), py::arg("count"), py::arg("seed"), py::arg("stream"),
      "count integers, each uniform over range(n) and independent of the others.");
}

}  // namespace moetrace::bindings
