#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "modules.h"
#include "moetrace/tree/packing.h"
#include "moetrace/tree/plan.h"
#include "moetrace/tree/visibility.h"

namespace py = pybind11;
using moetrace::tree::CaseShape;
using moetrace::tree::Fork;
using moetrace::tree::Plan;

namespace {

template <typename T>
py::array_t<T> grid(const std::vector<T>& cells, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), cells.data());
}

auto per_row(std::vector<std::int64_t> Plan::* cells) {
  return [cells](const Plan& plan) { return grid(plan.*cells, {plan.cases, plan.rows}); };
}

}  // namespace

void init_tree(py::module_& m) {
  py::class_<CaseShape>(m, "CaseShape",
                        "What the tree has to know of a case: places in its prompt, in tokens.")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t>(), py::arg("length"),
           py::arg("subject_start"), py::arg("subject_stop"), py::arg("patch_position"))
      .def_readonly("length", &CaseShape::length)
      .def_readonly("subject_start", &CaseShape::subject_start)
      .def_readonly("subject_stop", &CaseShape::subject_stop)
      .def_readonly("patch_position", &CaseShape::patch_position);

  py::class_<Fork>(m, "Fork",
                   "A patched run that leaves noised branch `branch` at the entry of layer `layer`.")
      .def(py::init<std::int64_t, std::int64_t>(), py::arg("layer"), py::arg("branch") = 0)
      .def_readonly("layer", &Fork::layer)
      .def_readonly("branch", &Fork::branch);

  py::class_<Plan>(m, "Plan", "One batch of cases laid out as rows of one forward pass.")
      .def_readonly("cases", &Plan::cases)
      .def_readonly("rows", &Plan::rows, "All rows of a case, forks included.")
      .def_readonly("base_rows", &Plan::base_rows, "Rows of a case before its first fork.")
      .def_readonly("chain", &Plan::chain, "Rows of each fork.")
      .def_readonly("rows_at_layer", &Plan::rows_at_layer, "Rows alive while layer l runs.")
      .def_property_readonly("position", per_row(&Plan::position), "(cases, rows): place in the prompt.")
      .def_property_readonly("source", per_row(&Plan::source), "(cases, rows): base row that a row copies.")
      .def_property_readonly("clean_twin", per_row(&Plan::clean_twin),
                             "(cases, rows): clean row at the same position.")
      .def_property_readonly("branch", per_row(&Plan::branch),
                             "(cases, rows): -2 padding, -1 prefix and clean, else the noised branch.")
      .def_property_readonly("fork", per_row(&Plan::fork), "(cases, rows): fork of a row, -1 for none.")
      .def_property_readonly("clean_last", &Plan::clean_last, "Row of the clean final token.")
      .def("noised_last", &Plan::noised_last, py::arg("branch") = 0, "Row of a noised final token.")
      .def("fork_start", &Plan::fork_start, py::arg("fork"), "First row of a fork, by its index as given.")
      .def("fork_last", &Plan::fork_last, py::arg("fork"), "Row of a fork's final token.");

  m.def("make_plan", &moetrace::tree::make_plan, py::arg("cases"), py::arg("forks"), py::arg("branches"),
        py::arg("layers"), py::call_guard<py::gil_scoped_release>(),
        "Lay out a batch of cases with noised branches and forks. ValueError for shapes that don't fit.");
  m.def(
      "visibility",
      [](const Plan& plan) {
        return grid(moetrace::tree::visibility(plan), {plan.cases, plan.rows, plan.rows});
      },
      py::arg("plan"), "(cases, rows, rows) uint8: 1 where the second row is the first or its ancestor.");
  m.def("pack", &moetrace::tree::pack, py::arg("rows"), py::arg("budget"),
        py::call_guard<py::gil_scoped_release>(),
        "Cut items into batches so that items x rows of the longest stays within the budget.");
}
