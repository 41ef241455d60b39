#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "moetrace/pass/outcome.h"
#include "moetrace/pass/pass.h"
#include "moetrace/tree/paths.h"
#include "moetrace/tree/visibility.h"
#include "runs.h"

using namespace moetrace::bindings;
using namespace moetrace::pass;
using moetrace::experts::Chosen;
using moetrace::experts::Layout;
using moetrace::hooks::RowChange;
using moetrace::hooks::Trouble;

namespace {

using Release = py::call_guard<py::gil_scoped_release>;

Case make_case(std::vector<std::int64_t> tokens, std::int64_t start, std::int64_t stop,
               std::vector<moetrace::tree::Positions> places, const In<float>& vectors) {
  const auto length = static_cast<std::int64_t>(tokens.size());
  return {{length, start, stop, std::move(places)}, std::move(tokens), vector_of(vectors)};
}

/// One layer of an outcome as arrays by case, draw and expert (or slot) that share its memory.
py::dict layer_arrays(py::object self, const LayerOutcome& layer, const Outcome& outcome) {
  const auto grid_of = [&](const auto& cells, std::int64_t width) {
    const std::int64_t known = cells.empty() ? 0 : width;
    const py::array found = view(cells, {outcome.cases(), outcome.draws(), known}, self);
    const bool flags = found.itemsize() == 1;  // kept as bytes
    return flags ? py::array(found.attr("view")("bool")) : found;
  };
  py::dict found;
  found["routed"] = grid_of(layer.routed, layer.slots);
  found["valid"] = grid_of(layer.valid, layer.slots);
  found["clean_active"] = grid_of(layer.clean_active, layer.experts);
  found["noised_active"] = grid_of(layer.noised_active, layer.experts);
  found["patched_active"] = grid_of(layer.patched_active, layer.experts);
  found["clean_weight"] = grid_of(layer.clean_weight, layer.experts);
  found["noised_weight"] = grid_of(layer.noised_weight, layer.experts);
  found["delta_norm"] = grid_of(layer.delta_norm, layer.experts);
  found["patched"] = grid_of(layer.patched, layer.experts);
  found["direct"] = grid_of(layer.direct, layer.experts);
  found["direct_linear"] = grid_of(layer.direct_linear, layer.experts);
  found["clean_logit"] = grid_of(layer.clean_logit, layer.experts);
  found["noised_logit"] = grid_of(layer.noised_logit, layer.experts);
  return found;
}

std::pair<std::string, std::int64_t> named(const Hook& hook) { return {module_of(hook.place), hook.layer}; }

py::arg_v denoising() { return py::arg_v("origin", Origin::kDenoise, "Origin.DENOISE"); }

void bind_job(py::module_& m) {
  py::native_enum<Patch::Kind>(m, "PatchKind", "enum.Enum", "What a patched run changes at one layer.")
      .value("BLOCK", Patch::Kind::kBlock, "The other run's block output in place of its own (section 3.3).")
      .value("NULL", Patch::Kind::kNull, "Its own block output in place of itself: the numerical floor.")
      .value("EXPERTS", Patch::Kind::kExperts,
             "Patch vectors of chosen experts are added (section 3.4), or taken away.")
      .finalize();
  py::native_enum<Origin>(m, "Origin", "enum.Enum", "Which run a patched run leaves from.")
      .value("DENOISE", Origin::kDenoise, "The noised run of its draw; takes clean values (equation 4).")
      .value("NOISE", Origin::kNoise, "The clean run; takes the noised values of its draw.")
      .finalize();
  py::native_enum<Chosen>(m, "Chosen", "enum.Enum", "Which experts' patch vectors a run adds.")
      .value("CLEAN", Chosen::kClean, "All clean-routed ones (equation 14).")
      .value("UNION", Chosen::kUnion, "All of either run (equation 15).")
      .value("SLOT", Chosen::kSlot, "The one in a slot of the routing union.")
      .value("SUBSET", Chosen::kSubset, "A bitmask over the slots of the routing union.")
      .value("EXPERTS", Chosen::kExperts, "The named ones, where either run routes to them.")
      .value("ANCHOR", Chosen::kAnchor, "One named expert, where it is clean-routed beside another.")
      .value("MATCHED", Chosen::kMatched, "Its gate-weight-matched control (equation 8).")
      .finalize();

  py::class_<Patch>(m, "Patch", "What a patched run changes at one layer.")
      .def_static(
          "block",
          [](std::int64_t layer, std::int64_t place, Origin origin) {
            return Patch{layer, Patch::Kind::kBlock, {}, place, origin};
          },
          py::arg("layer"), py::arg("place") = 0, denoising())
      .def_static(
          "null",
          [](std::int64_t layer, std::int64_t place, Origin origin) {
            return Patch{layer, Patch::Kind::kNull, {}, place, origin};
          },
          py::arg("layer"), py::arg("place") = 0, denoising())
      .def_static(
          "of_experts",
          [](std::int64_t layer, Chosen chosen, std::uint64_t subset, std::vector<std::int64_t> experts,
             bool equal_norm, std::int64_t place, Origin origin) {
            return Patch{layer,
                         Patch::Kind::kExperts,
                         {chosen, false, 0, subset, std::move(experts), equal_norm},
                         place,
                         origin};
          },
          py::arg("layer"), py::arg("chosen"), py::kw_only(), py::arg("subset") = 0,
          py::arg("experts") = std::vector<std::int64_t>(), py::arg("equal_norm") = false,
          py::arg("place") = 0, denoising(),
          "`subset`: bit j for slot j. `experts`: by index. `equal_norm`: of anchor and matched (equation "
          "10).")
      .def_readonly("layer", &Patch::layer)
      .def_readonly("kind", &Patch::kind)
      .def_readonly("fixed_routing", &Patch::fixed_routing)
      .def(
          "with_fixed_routing",
          [](Patch patch) {
            patch.fixed_routing = true;
            return patch;
          },
          "The same patch, whose tokens later layers route as they do those of the run that it leaves from.")
      .def_property_readonly("chosen", [](const Patch& patch) { return patch.experts.chosen; })
      .def_property_readonly("subset", [](const Patch& patch) { return patch.experts.subset; })
      .def_property_readonly("experts", [](const Patch& patch) { return patch.experts.experts; })
      .def_property_readonly("equal_norm", [](const Patch& patch) { return patch.experts.equal_norm; })
      .def_readonly("place", &Patch::place)
      .def_readonly("origin", &Patch::origin)
      .def(
          "__eq__", [](const Patch& a, const Patch& b) { return a == b; }, py::is_operator())
      .def("__repr__", [](py::object self) {
        const bool fixed = self.attr("fixed_routing").cast<bool>();
        return py::str(
                   "Patch(layer={}, kind={}, chosen={}, subset={}, experts={}, equal_norm={}, place={}, "
                   "origin={}{})")
            .format(self.attr("layer"), self.attr("kind").attr("name"), self.attr("chosen").attr("name"),
                    self.attr("subset"), self.attr("experts"), self.attr("equal_norm"), self.attr("place"),
                    self.attr("origin").attr("name"), fixed ? ", fixed_routing=True" : "");
      });

  py::class_<Sweep>(m, "Sweep", "Every routed expert of a layer patched by itself.")
      .def(
          py::init(
              [](std::int64_t layer, std::int64_t top_k, bool of_union, std::int64_t place, Origin origin,
                 std::int64_t per_token) { return Sweep{layer, top_k, of_union, place, origin, per_token}; }),
          py::arg("layer"), py::arg("top_k"), py::arg("of_union") = false, py::arg("place") = 0, denoising(),
          py::arg("per_token") = 0,
          "`top_k`: a run routes the tokens of the place to at most so many experts; `per_token`: and one of "
          "them, 0 where unsaid.")
      .def_readonly("layer", &Sweep::layer)
      .def_readonly("top_k", &Sweep::top_k)
      .def_readonly("of_union", &Sweep::of_union)
      .def_readonly("place", &Sweep::place)
      .def_readonly("origin", &Sweep::origin)
      .def_readonly("per_token", &Sweep::per_token)
      .def("__repr__", [](py::object self) {
        return py::str("Sweep(layer={}, top_k={}, of_union={}, place={}, origin={})")
            .format(self.attr("layer"), self.attr("top_k"), self.attr("of_union"), self.attr("place"),
                    self.attr("origin").attr("name"));
      });

  py::native_enum<RowChange>(m, "Corruption", "enum.Enum",
                             "What a corruption's vectors do to the subject's embeddings.")
      .value("ADDED", RowChange::kAdded, "They are added (equation 2).")
      .value("REPLACED", RowChange::kReplaced, "They take their place.")
      .finalize();

  py::class_<Job>(m, "Job",
                  "What a trace does to every case: patches, and sweeps over the experts of layers.")
      .def(py::init([](std::int64_t layers, std::int64_t draws, std::vector<Patch> patches,
                       std::vector<Sweep> sweeps, std::vector<std::int64_t> place_tokens,
                       RowChange corruption) {
             return Job{
                 layers, draws, std::move(patches), std::move(sweeps), corruption, std::move(place_tokens)};
           }),
           py::arg("layers"), py::arg("draws"), py::arg("patches"), py::arg("sweeps"),
           py::arg("place_tokens") = std::vector<std::int64_t>(), py::arg("corruption") = RowChange::kAdded,
           "`place_tokens`: of each place, in any case of the trace: tokens at most; 1 where unsaid.")
      .def(
          "knocking_out",
          [](Job job, bool taken, bool named) {
            job.knock_out = moetrace::experts::KnockOut{taken, named, {}};
            return job;
          },
          py::arg("taken"), py::arg("named"),
          "The same with patches that switch experts off. `taken`: their own contributions are taken away; "
          "`named`: cases say what comes instead.")
      .def_property_readonly(
          "runs",
          [](const Job& job) {
            moetrace::tree::Runs runs;
            for (const Run& run : runs_of(job)) runs.push_back(fork_of(run, 0));
            return runs;
          },
          "Where each run is patched: the patches, then the slots of the sweeps.");

  py::class_<Case>(m, "PassCase", "A case as a pass sees it.")
      .def(
          py::init(&make_case), py::arg("tokens"), py::arg("subject_start"), py::arg("subject_stop"),
          py::arg("places"), py::arg("vectors"),
          "`places`: of each place its positions, ascending; none where the case doesn't have it. `vectors`: "
          "float32 (draws, subject tokens, width), which change the subject's embeddings.")
      .def(
          "replace",
          [](Case& self, std::int64_t layer, std::int64_t position, std::vector<std::int64_t> experts,
             const In<float>& vectors) {
            self.instead[layer][position] = {std::move(experts), vector_of(vectors)};
          },
          py::arg("layer"), py::arg("position"), py::arg("experts"), py::arg("vectors"),
          "What experts of a layer contribute instead at a token, at the experts' output: float32 (experts, "
          "width).");

  py::class_<LayerFacts>(m, "LayerFacts", "What a pass has to know of a layer of the model.")
      .def(py::init([](bool experts, std::int64_t expert_count, std::int64_t fused_from, std::int64_t checked,
                       std::optional<Layout> layout) {
             return LayerFacts{experts, expert_count, fused_from, checked, layout};
           }),
           py::kw_only(), py::arg("experts"), py::arg("expert_count") = 0, py::arg("fused_from") = 0,
           py::arg("checked_rows") = 2, py::arg("layout") = py::none(),
           "`fused_from`: rows from which on the fused routine computes experts, 0 for never; "
           "`checked_rows`: rows that the module computes all the same, for comparison; `layout`: of the "
           "experts' weights, None where it isn't known.");
}

}  // namespace

void init_pass(py::module_& m) {
  bind_job(m);

  py::native_enum<Trouble>(m, "Trouble", "enum.Enum", "What can go wrong at a site.")
      .value("CANNOT_JOIN", Trouble::kCannotJoin, "Forks can't join in the way that was tried.")
      .value("NOT_FUSED", Trouble::kNotFused, "The fused routine gives other numbers than the module.")
      .value("CONTRIBUTION", Trouble::kContribution, "Contributions don't sum to the experts' output.")
      .value("SHAPE", Trouble::kShape, "The model hands over another shape than was planned.")
      .finalize();

  py::class_<Pass>(m, "Pass", "One forward pass of a batch of cases with all their runs, and its hooks.")
      .def(py::init<Job, std::vector<LayerFacts>, std::vector<Case>, std::int64_t, std::int64_t,
                    moetrace::tree::Join>(),
           py::arg("job"), py::arg("layers"), py::arg("cases"), py::arg("begin"), py::arg("end"),
           py::arg("join"), Release(), "`begin`, `end`: which runs of the job.")
      .def_property_readonly(
          "plan", [](const Pass& pass) -> const moetrace::tree::Plan& { return pass.layout().plan(); },
          py::return_value_policy::reference_internal)
      .def_property_readonly(
          "start_rows", [](const Pass& pass) { return pass.layout().start_rows(); },
          "Rows of each case in the model's input.")
      .def(
          "input_ids",
          [](const Pass& pass) {
            return grid(pass.input_ids(), {pass.layout().cases(), pass.layout().start_rows()});
          },
          "int64 (cases, start rows)")
      .def(
          "position_ids",
          [](const Pass& pass) {
            return grid(pass.position_ids(), {pass.layout().cases(), pass.layout().start_rows()});
          },
          "int64 (cases, start rows): a row's depth in the tree")
      .def(
          "visibility",
          [](const Pass& pass) {
            const auto& plan = pass.layout().plan();
            std::vector<std::uint8_t> cells;
            {
              const py::gil_scoped_release release;
              cells = moetrace::tree::visibility(plan);
            }
            return grid(cells, {plan.cases, plan.rows, plan.rows});
          },
          "uint8 (cases, rows, rows): 1 where the second row is the first or its ancestor")
      .def(
          "paths",
          [](const Pass& pass, std::int64_t rows) {
            return moetrace::tree::make_paths(pass.layout().plan(), rows);
          },
          py::arg("rows"), Release(), "Every run as a sequence, while so many rows of each case are there.")
      .def_property_readonly("final_rows", &Pass::final_rows,
                             "Rows that are read out: clean, noised for each draw, then every fork.")
      .def(
          "last_rows",
          [](const Pass& pass, std::int64_t count) {
            const auto runs = static_cast<std::int64_t>(pass.final_rows().size());
            return grid(pass.last_rows(count), {pass.layout().cases(), runs, count});
          },
          py::arg("count"),
          "int64 (cases, runs, count): rows of the same runs at the final positions, the final one first.")
      .def_property_readonly("fused_calls", &Pass::fused_calls,
                             "Calls of experts that the fused routine served.")
      .def_property_readonly(
          "trouble",
          [](const Pass& pass) -> std::optional<Trouble> {
            const auto failure = pass.failure();
            return failure ? std::optional(failure->trouble()) : std::nullopt;
          },
          "What went wrong at a site.")
      .def_property_readonly(
          "complaint",
          [](const Pass& pass) {
            const auto failure = pass.failure();
            return failure ? std::string(failure->what()) : std::string();
          },
          "What went wrong, in words.")
      .def_property_readonly(
          "troubled_module",
          [](const Pass& pass) {
            const Hook* hook = pass.failed();
            return hook == nullptr ? std::pair<std::string, std::int64_t>("", -1) : named(*hook);
          },
          "Where it went wrong: the kind of module and its layer.")
      .def("misfired", &Pass::misfired, "Says which sites didn't fire exactly once; empty if all did.")
      .def_property_readonly(
          "misfired_modules",
          [](const Pass& pass) {
            std::vector<std::pair<std::string, std::int64_t>> found;
            for (const Hook& hook : pass.misfires()) found.push_back(named(hook));
            return found;
          },
          "Their modules, as in `troubled_module`.")
      .def("reset", &Pass::reset, "Forget what was seen: the model is run again.")
      .def("scale_experts", &Pass::scale_experts, py::arg("layer"), py::arg("factor"),
           "Say what a layer's block multiplies its experts' output by, before the layer ends.");

  py::class_<Outcome>(m, "Outcome", "What the passes of one batch gave, in arrays.")
      .def(py::init<const Job&, std::int64_t>(), py::arg("job"), py::arg("cases"))
      .def(
          "take",
          [](Outcome& self, const Pass& pass, const In<double>& differences,
             const std::map<std::int64_t, double>& scales, const In<double>& direct,
             const In<double>& direct_linear) {
            const Readings readings{vector_of(differences), vector_of(direct), vector_of(direct_linear)};
            const py::gil_scoped_release release;
            self.take(pass, readings, scales);
          },
          py::arg("run"), py::arg("differences"), py::arg("scales"), py::arg("direct"),
          py::arg("direct_linear"),
          "Take in a pass over the same cases: logit differences (cases, final rows), what each routed "
          "layer's block multiplies its experts' output by, and direct effects (cases, runs, draws; empty "
          "where nobody asked).")
      .def_property_readonly(
          "clean",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            return view(own.clean(), {own.cases()}, self);
          },
          "float64 (cases,)")
      .def_property_readonly(
          "noised",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            return view(own.noised(), {own.cases(), own.draws()}, self);
          },
          "float64 (cases, draws)")
      .def_property_readonly(
          "patched",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            return view(own.patched(), {own.cases(), own.patches(), own.draws()}, self);
          },
          "float64 (cases, patches, draws)")
      .def_property_readonly(
          "present",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            return view(own.present(), {own.cases(), own.patches()}, self).attr("view")("bool");
          },
          "bool (cases, patches): whether the case has the place of the patch.")
      .def_property_readonly(
          "direct",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            return view(own.direct(), {own.cases(), own.patches(), own.draws()}, self);
          },
          "float64 (cases, patches, draws), NaN where nobody asked")
      .def_property_readonly(
          "direct_linear",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            return view(own.direct_linear(), {own.cases(), own.patches(), own.draws()}, self);
          },
          "float64 (cases, patches, draws), NaN where nobody asked")
      .def_property_readonly(
          "layers",
          [](py::object self) {
            const auto& own = self.cast<const Outcome&>();
            py::dict found;
            for (const auto& [layer_and_place, arrays] : own.layers()) {
              found[py::cast(layer_and_place)] = layer_arrays(self, arrays, own);
            }
            return found;
          },
          "For each routed layer and place its arrays by case, draw and expert (or slot).");
}
