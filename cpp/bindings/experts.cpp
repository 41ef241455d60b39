#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "modules.h"
#include "moetrace/experts/contributions.h"
#include "moetrace/experts/expert_site.h"

namespace py = pybind11;
using namespace moetrace::experts;

void init_experts(py::module_& m) {
  using torch::wrap_pybind_function_no_gil;

  py::enum_<Kind>(m, "Kind", "Which patch vectors a recipe takes.")
      .value("CLEAN", Kind::kClean, "Every clean-routed expert (equation 14).")
      .value("UNION", Kind::kUnion, "Every clean- or noised-routed expert (equation 15).")
      .value("PLACE", Kind::kPlace, "The expert at one of the 2k places.")
      .value("SUBSET", Kind::kSubset, "A bitmask over the 2k places.")
      .value("EXPERTS", Kind::kExperts, "The named experts.")
      .value("ANCHOR", Kind::kAnchor, "The named expert, where it is clean-routed beside another.")
      .value("MATCHED", Kind::kMatched, "Its gate-weight-matched control (equation 8).");

  py::class_<Recipe>(m, "Recipe", "Which patch vectors a patched run adds, said before the routing is known.")
      .def(py::init(
               [](Kind kind, std::int64_t place, std::uint64_t subset, std::vector<std::int64_t> experts,
                  bool equal_norm) { return Recipe{kind, place, subset, std::move(experts), equal_norm}; }),
           py::arg("kind"), py::arg("place") = 0, py::arg("subset") = 0,
           py::arg("experts") = std::vector<std::int64_t>(), py::arg("equal_norm") = false)
      .def_readonly("kind", &Recipe::kind)
      .def_readonly("place", &Recipe::place)
      .def_readonly("subset", &Recipe::subset)
      .def_readonly("experts", &Recipe::experts)
      .def_readonly("equal_norm", &Recipe::equal_norm);

  py::class_<Players>(m, "Players", "Experts that either run routes to, 2k places for each item.")
      .def_readonly("expert", &Players::expert, "int64 (items, 2k)")
      .def_readonly("valid", &Players::valid, "bool (items, 2k): part of the routing union")
      .def_readonly("noised_active", &Players::noised_active, "bool (items, 2k)")
      .def_readonly("clean_weight", &Players::clean_weight, "float32 (items, 2k)")
      .def_readonly("noised_weight", &Players::noised_weight, "float32 (items, 2k)")
      .def_readonly("delta", &Players::delta, "(items, 2k, width): patch vectors (equation 6)")
      .def_readonly("norm", &Players::norm, "float32 (items, 2k): their norms");

  py::class_<ExpertSite, moetrace::hooks::Site, std::shared_ptr<ExpertSite>>(
      m, "ExpertSite", "Patches at the output of a layer's experts.")
      .def(py::init<std::string, std::int64_t, at::Tensor, at::Tensor, std::optional<at::Tensor>,
                    std::vector<Recipe>>(),
           py::arg("name"), py::arg("rows"), py::arg("clean"), py::arg("noised"), py::arg("destination"),
           py::arg("recipes"))
      .def_property_readonly("wanted", &ExpertSite::wanted, "int64: rows whose contributions are needed.")
      .def("route",
           wrap_pybind_function_no_gil(
               [](ExpertSite& site, at::Tensor index, at::Tensor weight, at::Tensor contribution) {
                 site.route({std::move(index), std::move(weight), std::move(contribution)});
               }),
           py::arg("index"), py::arg("weight"), py::arg("contribution"),
           "Routing (wanted, k) and contributions (wanted, k, width) of the wanted rows, before it fires.")
      .def_property_readonly("players", &ExpertSite::players)
      .def_property_readonly("patched", &ExpertSite::patched,
                             "(items * recipes, width): the experts' output of each fork, recipes innermost.")
      .def_property_readonly("sum_error", &ExpertSite::sum_error,
                             "Largest |sum of contributions - output| over the wanted rows.")
      .def_property_readonly("output_size", &ExpertSite::output_size,
                             "Largest |output| over the wanted rows.");

  m.def("gated_contributions",
        wrap_pybind_function_no_gil([](const at::Tensor& gate_up, const at::Tensor& down,
                                       const at::Tensor& hidden, const at::Tensor& index,
                                       const at::Tensor& weights) {
          return gated_contributions({gate_up, down}, hidden, index, weights);
        }),
        py::arg("gate_up"), py::arg("down"), py::arg("hidden"), py::arg("index"), py::arg("weights"),
        "(n, k, width): contribution of every routed (row, expert) pair of silu-gated experts.");

  m.def("gated_output",
        wrap_pybind_function_no_gil([](const at::Tensor& gate_up, const at::Tensor& down,
                                       const at::Tensor& hidden, const at::Tensor& index,
                                       const at::Tensor& weights, const at::Tensor& wanted) {
          GatedOutput found = gated_output({gate_up, down}, hidden, index, weights, wanted);
          return std::make_pair(std::move(found.output), std::move(found.contribution));
        }),
        py::arg("gate_up"), py::arg("down"), py::arg("hidden"), py::arg("index"), py::arg("weights"),
        py::arg("wanted"),
        "(n, width): output of silu-gated experts; (wanted, k, width): contributions of the wanted rows.");
}
