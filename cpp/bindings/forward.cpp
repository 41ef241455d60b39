#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "forward_hooks.h"
#include "hook_scope.h"

using namespace moetrace::bindings;
using moetrace::experts::ContributionTap;
using moetrace::hooks::Forward;
using moetrace::hooks::Tap;
using moetrace::hooks::TokenPatch;
using moetrace::hooks::Tokens;

void init_forward(py::module_& m) {
  py::native_enum<Step>(m, "Step", "enum.IntEnum", "What torch.ops.moetrace.fire asks of a tap.")
      .value("VALUE", Step::kValue, "A value passes: [value].")
      .value("READ", Step::kRead, "What was kept is asked for: [].")
      .value("KEEP", Step::kKeep, "Rows of chosen tokens alone are to be kept: [rows].")
      .finalize();
  py::native_enum<Tokens::Kind>(m, "TokensKind", "enum.Enum", "Which tokens of a user's forwards are meant.")
      .value("ALL", Tokens::Kind::kAll, "Every token of every forward.")
      .value("COLUMNS", Tokens::Kind::kColumns, "The same numbers in every sequence.")
      .value("ROWS", Tokens::Kind::kRows, "Numbers by sequence, as many of each.")
      .value("LAST", Tokens::Kind::kLast, "Of each sequence the last that isn't padding.")
      .finalize();
  py::class_<Forward, std::shared_ptr<Forward>>(
      m, "Forward", "The forward of a user's own that is in progress, and which of its tokens are chosen.")
      .def(py::init([](Tokens::Kind kind, std::vector<std::int64_t> numbers, std::int64_t sequences) {
             return std::make_shared<Forward>(Tokens{kind, std::move(numbers), sequences});
           }),
           py::arg("kind"), py::arg("numbers") = std::vector<std::int64_t>(), py::arg("sequences") = 0)
      .def(
          "begin", &Forward::begin, py::arg("batch"), py::arg("tokens"), py::arg("past"), py::arg("last"),
          "A forward of (batch, tokens) starts behind `past` cached tokens. `last`: of each sequence the "
          "token "
          "of this forward that is its last; empty for the end. IndexError for a token before the first one, "
          "ValueError for tokens that the batch hasn't.")
      .def("end", &Forward::end, "The forward is over.")
      .def_property_readonly("running", &Forward::running, "Whether one is in progress in this thread.")
      .def_property_readonly("running_elsewhere", &Forward::running_elsewhere,
                             "Whether one is in progress in another thread.")
      .def_property_readonly("number", &Forward::number, "Forwards so far.")
      .def_property_readonly("batch", &Forward::batch, "Sequences of the forward.")
      .def_property_readonly("tokens", &Forward::tokens, "Tokens of each.")
      .def_property_readonly("past", &Forward::past, "Tokens before them in a cache.")
      .def_property_readonly("chosen", &Forward::chosen, "Chosen tokens of each sequence.")
      .def_property_readonly("longest", &Forward::longest, "The most tokens that a sequence has had.")
      .def_property_readonly(
          "rows", [](const Forward& own) { return own.rows().rows(); }, "Chosen rows of (batch * tokens).")
      .def("unreached", &Forward::unreached, "Tokens that were asked for and that no forward held.");

  py::class_<Tap, std::shared_ptr<Tap>>(m, "Tap", "Keeps what passes a place at the chosen tokens.")
      .def(py::init<std::string, std::shared_ptr<const Forward>>(), py::arg("name"), py::arg("forward"))
      .def_property_readonly("number", &Tap::number, "By which torch.ops.moetrace.fire reaches it.")
      .def_property_readonly("fired", &Tap::fired, "How often something passed.")
      .def_property_readonly("steps", &Tap::steps, "Tokens of each forward that is kept.")
      .def("reset", &Tap::reset, "Forget what was kept.")
      .def("hook", &tap_hook, py::arg("forward"), "To hang behind a module.")
      .def("routing_hook", &tap_routing_hook, py::arg("forward"), py::arg("routed_call"),
           "To hang before an experts module.");
  py::class_<TokenPatch, std::shared_ptr<TokenPatch>>(m, "TokenPatch",
                                                      "Replaces what passes a place at the chosen tokens.")
      .def(py::init<std::string, std::shared_ptr<const Forward>>(), py::arg("name"), py::arg("forward"))
      .def_property_readonly("fired", &TokenPatch::fired, "How often it replaced something.")
      .def("hook", &patch_hook, py::arg("forward"), py::arg("function"),
           "To hang behind a module: function(rows) gives what stands in their place.")
      .def("routing_hook", &patch_routing_hook, py::arg("forward"), py::arg("routed_call"),
           py::arg("function"),
           "To hang before an experts module: function(index, weights) gives what it is called with.");
  py::class_<ContributionTap, std::shared_ptr<ContributionTap>>(
      m, "ContributionTap", "What experts contribute to their sum at the chosen tokens.")
      .def(py::init<std::string, std::shared_ptr<const Forward>, std::int64_t>(), py::arg("name"),
           py::arg("forward"), py::arg("expert") = -1)
      .def("hook", &contributions_hook, py::arg("forward"), py::arg("routed_call"), py::arg("layout"),
           py::arg("function"), "To hang behind an experts module: function(*found) is told what was found.");
  m.def(
      "quietly",
      [](const py::object& function, const py::args& args, const py::kwargs& kwargs) {
        const Quiet quiet;
        return function(*args, **kwargs);
      },
      py::arg("function"),
      "Call a function; hooks of users' forwards in this thread do nothing for the time.");
  m.def("is_quiet", &Quiet::is_on, "Whether hooks of users' forwards in this thread do nothing now.");
}
