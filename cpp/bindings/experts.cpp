#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "moetrace/experts/controls.h"
#include "moetrace/experts/layout.h"

using namespace moetrace::bindings;
using moetrace::experts::Activation;
using moetrace::experts::Gate;
using moetrace::experts::Layout;

namespace {

void bind_layout(py::module_& m) {
  py::native_enum<Activation>(m, "Activation", "enum.Enum", "Of an expert's gate.")
      .value("SILU", Activation::kSilu)
      .value("GELU", Activation::kGelu)
      .value("GELU_TANH", Activation::kGeluTanh)
      .value("RELU", Activation::kRelu)
      .value("RELU_SQUARED", Activation::kReluSquared)
      .finalize();

  py::class_<Gate>(m, "Gate", "What stands between the two products of an expert: act(gate) * (up + shift).")
      .def(py::init([](bool gated, bool interleaved, Activation activation, double slope, double limit,
                       bool limits_activated, double shift) {
             return Gate{gated, interleaved, activation, slope, limit, limits_activated, shift};
           }),
           py::kw_only(), py::arg("gated") = true, py::arg("interleaved") = false,
           py::arg("activation") = Activation::kSilu, py::arg("slope") = 1.0,
           py::arg("limit") = std::numeric_limits<double>::infinity(), py::arg("limits_activated") = false,
           py::arg("shift") = 0.0,
           "`gated`: else act(up) alone; `interleaved`: gate and up column by column; `slope`: of silu, x * "
           "sigmoid(slope * x); `limit`: of the gate from above, before the activation or (`limits_activated`) "
           "behind it, and of up on either side.")
      .def_readonly("gated", &Gate::gated)
      .def_readonly("interleaved", &Gate::interleaved)
      .def_readonly("activation", &Gate::activation)
      .def_readonly("slope", &Gate::slope)
      .def_readonly("limit", &Gate::limit)
      .def_readonly("limits_activated", &Gate::limits_activated)
      .def_readonly("shift", &Gate::shift);

  py::class_<Layout>(m, "ExpertLayout", "How a module stores its experts.")
      .def(py::init([](const Gate& gate, bool transposed, bool biased) {
             return Layout{gate, transposed, biased};
           }),
           py::arg("gate"), py::kw_only(), py::arg("transposed") = false, py::arg("biased") = false,
           "`transposed`: weights (experts, in, out) instead of (experts, out, in).")
      .def_readonly("gate", &Layout::gate)
      .def_readonly("transposed", &Layout::transposed)
      .def_readonly("biased", &Layout::biased);
}

}  // namespace

void init_experts(py::module_& m) {
  bind_layout(m);
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
