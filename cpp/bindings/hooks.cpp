#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "modules.h"
#include "moetrace/hooks/birth.h"
#include "moetrace/hooks/row_sites.h"
#include "moetrace/hooks/table.h"

namespace py = pybind11;
using namespace moetrace::hooks;

namespace {

/// A module's output is a tensor or a tuple that begins with one; the rest of a tuple is passed on.
py::object fire_on_output(Site& site, const py::object&, const py::object&, const py::object& output) {
  const bool is_tuple = py::isinstance<py::tuple>(output);
  const py::object first = is_tuple ? py::object(output.cast<py::tuple>()[0]) : output;
  const auto value = first.cast<at::Tensor>();
  at::Tensor result;
  {
    py::gil_scoped_release unlocked;
    result = site.fire(value);
  }
  if (!is_tuple) return py::cast(result);
  py::list items(output);
  items[0] = py::cast(result);
  return py::tuple(items);
}

}  // namespace

void init_hooks(py::module_& m) {
  using torch::wrap_pybind_function;
  using torch::wrap_pybind_function_no_gil;

  py::class_<Site, std::shared_ptr<Site>>(m, "Site",
                                          "One armed place in a model; a forward hook when called.")
      .def("__call__", wrap_pybind_function(fire_on_output), py::arg("module"), py::arg("args"),
           py::arg("output"), "As a torch forward hook: replaces the output, or the first item of a tuple.")
      .def("fire",
           wrap_pybind_function_no_gil([](Site& site, const at::Tensor& value) { return site.fire(value); }),
           py::arg("value"), "What the model goes on with in place of `value`.")
      .def_property_readonly("name", &Site::name)
      .def_property_readonly("fired", &Site::fired, "How often it fired.");

  py::class_<OverwriteRows, Site, std::shared_ptr<OverwriteRows>>(m, "OverwriteRows",
                                                                  "Replace rows by other rows of the value.")
      .def(py::init<std::string, std::int64_t, at::Tensor, at::Tensor>(), py::arg("name"), py::arg("rows"),
           py::arg("destination"), py::arg("source"));
  py::class_<AddRows, Site, std::shared_ptr<AddRows>>(m, "AddRows", "Add vectors to rows, in float32.")
      .def(py::init<std::string, std::int64_t, at::Tensor, at::Tensor>(), py::arg("name"), py::arg("rows"),
           py::arg("destination"), py::arg("addend"));
  py::class_<GrowRows, Site, std::shared_ptr<GrowRows>>(m, "GrowRows",
                                                        "Append rows that start as copies of present ones.")
      .def(py::init<std::string, at::Tensor>(), py::arg("name"), py::arg("source"));

  py::class_<BirthRows, Site, std::shared_ptr<BirthRows>>(
      m, "BirthRows", "Append rows behind a layer whose output is stream + block.")
      .def(py::init<std::string, at::Tensor, at::Tensor, at::Tensor>(), py::arg("name"), py::arg("source"),
           py::arg("written"), py::arg("stream_row"))
      .def("tell",
           wrap_pybind_function_no_gil([](BirthRows& site, const at::Tensor& stream, const at::Tensor& block,
                                          at::Tensor own) { site.tell(stream, block, std::move(own)); }),
           py::arg("stream"), py::arg("block"), py::arg("own"),
           "Before it fires: stream and block output of all rows, and the written rows' block outputs.")
      .def("adds_up", wrap_pybind_function_no_gil([](const BirthRows& site, const at::Tensor& output) {
             return site.adds_up(output);
           }),
           py::arg("output"), "Whether the layer's output is stream + block, bit for bit.");

  py::class_<HookTable>(m, "HookTable", "The armed sites of one forward pass.")
      .def(py::init<>())
      .def("add", &HookTable::add, py::arg("site"))
      .def("__len__", &HookTable::size)
      .def("reset", &HookTable::reset, "Forget what fired: the pass is run again.")
      .def("check_fired", &HookTable::check_fired,
           "RuntimeError naming sites that didn't fire exactly once.");

  m.def("gather_rows", wrap_pybind_function_no_gil(gather_rows), py::arg("value"), py::arg("source"),
        "Rows `source` (batch, n) of each case of `value` (batch, rows, ...): (batch, n, ...).");
}
