#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "moetrace/experts/controls.h"

using namespace moetrace::bindings;

void init_experts(py::module_& m) {
  m.def(
      "matched_control",
      [](const In<std::int64_t>& experts, const In<float>& weights, std::int64_t anchor) {
        if (experts.size() != weights.size() || anchor < 0 || anchor >= experts.size()) {
          throw std::invalid_argument("matched_control needs a weight for each expert, and one of them");
        }
        const auto size = static_cast<std::size_t>(experts.size());
        return moetrace::experts::matched_control({experts.data(), size}, {weights.data(), size}, anchor);
      },
      py::arg("experts"), py::arg("weights"), py::arg("anchor"),
      "Place of the gate-weight-matched control of the expert at place `anchor` (equation 8); -1 for none.");
}
