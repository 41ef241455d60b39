#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "moetrace/tree/cost.h"
#include "moetrace/tree/layout.h"
#include "moetrace/tree/packing.h"
#include "moetrace/tree/paths.h"
#include "runs.h"

using namespace moetrace::bindings;
using namespace moetrace::tree;

namespace {

auto per_row(std::vector<std::int64_t> Plan::* cells) {
  return [cells](py::object self) {
    const auto& plan = self.cast<const Plan&>();
    return view(plan.*cells, {plan.cases, plan.rows}, self);
  };
}

auto per_sequence(std::vector<std::int64_t> Paths::* cells) {
  return [cells](py::object self) {
    const auto& paths = self.cast<const Paths&>();
    return view(paths.*cells, {paths.sequences()}, self);
  };
}

}  // namespace

void init_tree(py::module_& m) {
  py::class_<CaseShape>(m, "CaseShape",
                        "What the tree has to know of a case: places in its prompt, in tokens.")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::vector<Positions>>(), py::arg("length"),
           py::arg("subject_start"), py::arg("subject_stop"), py::arg("places"));

  py::class_<Runs>(m, "Runs", "Where patched runs are patched: layers and places.")
      .def(py::init([](const std::vector<std::int64_t>& layers, const std::vector<std::int64_t>& places) {
             if (!places.empty() && places.size() != layers.size()) {
               throw std::invalid_argument("runs need a place for each layer, or none for place 0");
             }
             Runs runs;
             for (std::size_t run = 0; run < layers.size(); ++run) {
               runs.push_back({layers[run], 0, places.empty() ? 0 : places[run]});
             }
             return runs;
           }),
           py::arg("layers"), py::arg("places") = std::vector<std::int64_t>())
      .def("__len__", [](const Runs& runs) { return runs.size(); })
      .def_property_readonly("layers",
                             [](const Runs& runs) {
                               std::vector<std::int64_t> layers;
                               for (const Fork& run : runs) layers.push_back(run.layer);
                               return layers;
                             })
      .def_property_readonly("places",
                             [](const Runs& runs) {
                               std::vector<std::int64_t> places;
                               for (const Fork& run : runs) places.push_back(run.place);
                               return places;
                             })
      .def_property_readonly("from_clean", [](const Runs& runs) {
        std::vector<bool> found;
        for (const Fork& run : runs) found.push_back(run.from_clean);
        return found;
      });

  py::native_enum<Join>(m, "Join", "enum.Enum", "Where forks join the pass; the first is the fastest.")
      .value("AFTER_LAYER", Join::kAfterLayer, "Behind the layer in which they are patched.")
      .value("BEFORE_LAYER", Join::kBeforeLayer, "Before it.")
      .value("START", Join::kStart, "Before the first layer; serves every model.")
      .finalize();

  py::class_<Plan>(m, "Plan", "One batch of cases laid out as rows of one forward pass.")
      .def_readonly("cases", &Plan::cases)
      .def_readonly("rows", &Plan::rows, "All rows of a case, forks included.")
      .def_readonly("base_rows", &Plan::base_rows, "Rows of a case before its first fork.")
      .def_readonly("chains", &Plan::chains_, "Rows of each fork.")
      .def_readonly("rows_at_layer", &Plan::rows_at_layer, "Rows of the forks up to layer l, and all others.")
      .def_property_readonly("position", per_row(&Plan::position), "(cases, rows): place in the prompt.")
      .def_property_readonly("source", per_row(&Plan::source), "(cases, rows): base row that a row copies.")
      .def_property_readonly("clean_twin", per_row(&Plan::clean_twin),
                             "(cases, rows): clean row at the same position.")
      .def_property_readonly("noised_twin", per_row(&Plan::noised_twin),
                             "(cases, rows): of a fork's row the noised row of its draw there.")
      .def_property_readonly("branch", per_row(&Plan::branch),
                             "(cases, rows): -2 padding, -1 prefix and clean, else the noised branch.")
      .def_property_readonly("fork", per_row(&Plan::fork), "(cases, rows): fork of a row, -1 for none.");

  py::class_<Paths>(m, "Paths", "Every run of a batch as a sequence: base runs first, then forks.")
      .def_readonly("rows", &Paths::rows, "Rows of each case that are there.")
      .def_readonly("bases", &Paths::bases, "Sequences before the first fork.")
      .def_readonly("longest", &Paths::longest, "Tokens of the longest sequence.")
      .def_property_readonly("length", per_sequence(&Paths::length), "(sequences,): tokens.")
      .def_property_readonly("origin", per_sequence(&Paths::origin),
                             "(sequences,): the sequence that a fork goes on from, its own elsewhere.")
      .def_property_readonly("cut", per_sequence(&Paths::cut),
                             "(sequences,): position of a fork's first own row, 0 elsewhere.")
      .def_property_readonly(
          "row",
          [](py::object self) {
            const auto& paths = self.cast<const Paths&>();
            return view(paths.row, {paths.sequences(), paths.longest}, self);
          },
          "(sequences, longest): row of each token as case * rows + row; behind the end the last again.")
      .def_property_readonly(
          "place",
          [](py::object self) {
            const auto& paths = self.cast<const Paths&>();
            const auto cells = static_cast<py::ssize_t>(paths.place.size());
            return view(paths.place, {paths.rows == 0 ? 0 : cells / paths.rows, paths.rows}, self);
          },
          "(cases, rows): token that a row is, as sequence * longest + position; 0 for padding.");

  m.def("pack", &pack, py::arg("rows"), py::arg("budget"), py::call_guard<py::gil_scoped_release>(),
        "Cut items into batches so that items x rows of the longest stays within the budget.");
  m.def("tree_rows", &tree_rows, py::arg("shape"), py::arg("runs"), py::arg("begin"), py::arg("end"),
        py::arg("draws"), "Token rows of one case with the runs from `begin` to `end`, forks of every draw.");
  m.def("tree_cost", &tree_cost, py::arg("shape"), py::arg("runs"), py::arg("draws"), py::arg("layers"),
        py::arg("join"), "Token rows of one case in the average layer, at least a quarter of all.");
  m.def("layer_rows", &layer_rows, py::arg("cases"), py::arg("runs"), py::arg("begin"), py::arg("end"),
        py::arg("draws"), py::arg("layers"), py::arg("join"), py::call_guard<py::gil_scoped_release>(),
        "Token rows of each case of a batch while each layer runs, and last all of them.");
  m.def("cut", &cut, py::arg("shape"), py::arg("runs"), py::arg("draws"), py::arg("layers"), py::arg("join"),
        py::arg("budget"), "Ranges of a case's runs that keep each tree within the budget; 0 for no budget.");
}
