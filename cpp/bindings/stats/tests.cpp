#include "arrays.h"
#include "moetrace/stats/multiplicity.h"
#include "moetrace/stats/ranks.h"
#include "moetrace/stats/sign_flip.h"
#include "parts.h"
#include "without_gil.h"

namespace moetrace::bindings {

namespace {

void bind_sign_flip(py::module_& module) {
  using Counts = stats::SignFlipCounts;
  py::class_<Counts>(module, "SignFlipCounts", "Flips that are at least as extreme as what was observed.")
      .def_readonly("flips", &Counts::flips)
      .def_readonly("exact", &Counts::exact)
      .def_property_readonly("own", [](const Counts& self) { return array_of(self.own); })
      .def_property_readonly("single_step", [](const Counts& self) { return array_of(self.single_step); })
      .def_property_readonly("step_down", [](const Counts& self) { return array_of(self.step_down); })
      .def_property_readonly("order", [](const Counts& self) { return array_of(self.order); });
  module.def(
      "sign_flip",
      [](const ArrayIn<double>& x, std::size_t flips, std::uint64_t seed, std::size_t threads) {
        const auto rows = view_of(x);
        return without_gil([&](const stats::Interrupt& interrupt) {
          return stats::sign_flip(rows, {flips, seed, threads}, interrupt);
        });
      },
      py::arg("x"), py::arg("flips"), py::arg("seed"), py::arg("threads"),
      "Sign flips of the rows of x (cases, or sums of clusters), shared by all columns.");
  module.def(
      "cluster_sums",
      [](const ArrayIn<double>& x, const ArrayIn<std::int32_t>& labels, std::size_t clusters) {
        const stats::Matrix sums = stats::cluster_sums(view_of(x), span_of(labels), clusters);
        return py::array_t<double>({sums.rows(), sums.cols()}, sums.data());
      },
      py::arg("x"), py::arg("labels"), py::arg("clusters"), "Sums of the rows of each cluster.");
}

}  // namespace

void bind_tests(py::module_& module) {
  bind_sign_flip(module);
  module.def(
      "adjust_holm", [](const ArrayIn<double>& p) { return array_of(stats::adjust_holm(span_of(p))); },
      py::arg("p"), "Holm's adjustment.");
  module.def(
      "adjust_benjamini_hochberg",
      [](const ArrayIn<double>& p) { return array_of(stats::adjust_benjamini_hochberg(span_of(p))); },
      py::arg("p"), "Benjamini and Hochberg's adjustment.");
  module.def(
      "monotone",
      [](const ArrayIn<double>& p, const ArrayIn<std::int64_t>& order) {
        return array_of(stats::monotone(span_of(p), span_of(order)));
      },
      py::arg("p"), py::arg("order"), "Step-down values made monotone along an order.");

  using Ranks = stats::SelectedRanks;
  py::enum_<stats::Ties>(module, "Ties", "Where candidates that tie with the selected one are put.")
      .value("ahead", stats::Ties::ahead)
      .value("midway", stats::Ties::midway)
      .value("behind", stats::Ties::behind);
  py::class_<Ranks>(module, "SelectedRanks", "One entry for each case; rank 0 where it can't be ranked.")
      .def_property_readonly("rank", [](const Ranks& self) { return array_of(self.rank); })
      .def_property_readonly("candidates", [](const Ranks& self) { return array_of(self.candidates); })
      .def_property_readonly("tied", [](const Ranks& self) { return array_of(self.tied); });
  module.def(
      "rank_selected",
      [](const ArrayIn<double>& values, const ArrayIn<std::uint8_t>& active,
         const ArrayIn<std::int64_t>& selected, stats::Ties ties) {
        return stats::rank_selected(view_of(values), span_of(active), span_of(selected), ties);
      },
      py::arg("values"), py::arg("active"), py::arg("selected"), py::arg("ties"),
      "Rank of the selected column among the active ones of each case.");
}

}  // namespace moetrace::bindings
