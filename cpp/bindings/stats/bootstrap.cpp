#include "moetrace/stats/bootstrap.h"

#include "arrays.h"
#include "parts.h"
#include "without_gil.h"

namespace moetrace::bindings {

namespace {

void bind_types(py::module_& module) {
  py::enum_<stats::Interval>(module, "Interval", "How an interval is read off the replicates.")
      .value("percentile", stats::Interval::percentile)
      .value("basic", stats::Interval::basic)
      .value("bca", stats::Interval::bca)
      .value("studentized", stats::Interval::studentized);

  using Options = stats::BootstrapOptions;
  py::class_<Options>(module, "BootstrapOptions", "How a bootstrap is drawn and read.")
      .def(py::init([](stats::Interval interval, double confidence, std::size_t resamples, std::uint64_t seed,
                       std::size_t clusters, bool two_stage, std::size_t threads) {
             return Options{interval, confidence, resamples, seed, clusters, two_stage, threads};
           }),
           py::kw_only(), py::arg("interval"), py::arg("confidence"), py::arg("resamples"), py::arg("seed"),
           py::arg("clusters"), py::arg("two_stage"), py::arg("threads"));

  using Intervals = stats::BootstrapIntervals;
  py::class_<Intervals>(module, "BootstrapIntervals", "One entry for each column.")
      .def_property_readonly("estimate", [](const Intervals& self) { return array_of(self.estimate); })
      .def_property_readonly("low", [](const Intervals& self) { return array_of(self.low); })
      .def_property_readonly("high", [](const Intervals& self) { return array_of(self.high); })
      .def_property_readonly("standard_error",
                             [](const Intervals& self) { return array_of(self.standard_error); })
      .def_property_readonly("degenerate", [](const Intervals& self) { return array_of(self.degenerate); });
}

}  // namespace

void bind_bootstrap(py::module_& module) {
  bind_types(module);
  module.def(
      "bootstrap_mean",
      [](const ArrayIn<double>& x, const ArrayIn<std::int32_t>& labels,
         const stats::BootstrapOptions& options) {
        const auto rows = view_of(x);
        const auto clusters = span_of(labels);
        return without_gil([&](const stats::Interrupt& interrupt) {
          return stats::bootstrap_mean(rows, clusters, options, interrupt);
        });
      },
      py::arg("x"), py::arg("labels"), py::arg("options"), "Means of the columns of x (cases x columns).");
  module.def(
      "bootstrap_ratio",
      [](const ArrayIn<double>& x, const ArrayIn<double>& y, const ArrayIn<std::int32_t>& labels,
         const stats::BootstrapOptions& options) {
        const auto above = view_of(x);
        const auto below = view_of(y);
        const auto clusters = span_of(labels);
        return without_gil([&](const stats::Interrupt& interrupt) {
          return stats::bootstrap_ratio(above, below, clusters, options, interrupt);
        });
      },
      py::arg("x"), py::arg("y"), py::arg("labels"), py::arg("options"),
      "Ratios of the means of x to those of y.");
  module.def(
      "bootstrap_quantile",
      [](const ArrayIn<double>& x, double q, const ArrayIn<std::int32_t>& labels,
         const stats::BootstrapOptions& options) {
        const auto rows = view_of(x);
        const auto clusters = span_of(labels);
        return without_gil([&](const stats::Interrupt& interrupt) {
          return stats::bootstrap_quantile(rows, q, clusters, options, interrupt);
        });
      },
      py::arg("x"), py::arg("q"), py::arg("labels"), py::arg("options"),
      "Quantiles of the columns of x at level q.");
}

}  // namespace moetrace::bindings
