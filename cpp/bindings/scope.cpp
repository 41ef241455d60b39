// What a pass hangs on Python's modules: it arms hooks, takes tensors out of calls and puts them back.

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "armed.h"
#include "bindings.h"
#include "hook_scope.h"
#include "moetrace/pass/pass.h"

using namespace moetrace::bindings;
using moetrace::pass::Hook;
using moetrace::pass::Pass;
using moetrace::pass::Place;

namespace {

constexpr std::array<std::string_view, 8> kPassedOn{"past_key_values",
                                                    "past_key_value",
                                                    "cache",
                                                    "use_cache",
                                                    "cache_position",
                                                    "output_attentions",
                                                    "output_router_logits",
                                                    "output_hidden_states"};
constexpr std::array<std::string_view, 3> kPerRow{"position_ids", "position_embeddings", "input_ids"};

template <std::size_t N>
bool contains(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Behind a module whose output a site may replace.
struct Output : Armed {
  explicit Output(const Armed& armed) : Armed(armed) {}
  py::object operator()(const py::object&, const py::object&, const py::object& output) const {
    const py::list found = fire(Step::kValue, first_of(output));
    return found.empty() ? py::none() : with_first(output, found[0]);
  }
};

/// Behind a block whose output is watched.
struct Watched : Armed {
  explicit Watched(const Armed& armed) : Armed(armed) {}
  void operator()(const py::object&, const py::object&, const py::object& output) const {
    fire(Step::kBlockExit, first_of(output));
  }
};

/// Behind a module beside the block: a norm of the stream, perhaps.
struct Beside : Armed {
  explicit Beside(const Armed& armed) : Armed(armed) {}
  void operator()(const py::object&, const py::tuple& args, const py::object& output) const {
    if (args.empty() || !is_tensor(args[0]) || !is_tensor(output)) return;
    py::list given;
    given.append(args[0]);
    given.append(output);
    fire(Step::kNorm, std::move(given));
  }
};

struct BlockEntry : Armed {
  explicit BlockEntry(const Armed& armed) : Armed(armed) {}
  void operator()(const py::object&, const py::tuple& args, const py::dict& kwargs) const {
    const py::object hidden = hidden_of(args, kwargs);
    if (!is_tensor(hidden)) refuse("a block that isn't given hidden states first");
    fire(Step::kBlockEntry, hidden);
  }
};

/// Before a layer: hidden states, masks and whatever has a line for each row get the rows that are there.
struct LayerEntry : Armed {
  explicit LayerEntry(const Armed& armed) : Armed(armed) {}
  py::object operator()(const py::object&, const py::tuple& args, const py::dict& kwargs) const {
    const py::object hidden = hidden_of(args, kwargs);
    if (!is_tensor(hidden)) refuse("a layer that isn't given hidden states first");
    py::list positional;
    positional.append(fire(Step::kValue, hidden)[0]);
    for (std::size_t at = 1; at < args.size(); ++at) positional.append(lines(args[at]));
    py::dict given;
    for (const auto& [key, value] : kwargs) {
      const std::string name = py::str(key);
      if (name == "hidden_states") continue;
      given[key] = input(name, py::reinterpret_borrow<py::object>(value));
    }
    return py::make_tuple(py::tuple(positional), given);
  }

 private:
  py::object input(const std::string& name, const py::object& value) const {
    if (value.is_none() || contains(kPassedOn, name)) return value;
    if (name == "attention_mask") {
      if (!is_tensor(value)) refuse("an attention mask that isn't a tensor");
      return fire(Step::kMask, value)[0];
    }
    if (contains(kPerRow, name)) return lines(value);
    if (name == "attention_scaling" && is_tensor(value)) return fire(Step::kHeads, value)[0];
    if (name == "prev_topk_indices" && is_tensor(value)) return fire(Step::kChosen, value)[0];
    if (name == "shared_kv_states") return completed(value);
    refuse(name);
  }

  /// Keys and values that earlier layers keep for later ones, in the forward's own table.
  py::object completed(const py::object& table) const {
    for (const py::handle key : py::list(table)) {
      py::list found;
      for (const py::handle part : table[key]) {
        if (!is_tensor(part)) refuse("keys and values that aren't tensors");
        found.append(fire(Step::kHeads, part)[0]);
      }
      table[key] = py::tuple(found);
    }
    return table;
  }

  py::object lines(const py::object& value) const {
    if (value.is_none()) return value;
    if (is_tensor(value)) return fire(Step::kPerRow, value)[0];
    const bool is_list = py::isinstance<py::list>(value);
    if (!is_list && !py::isinstance<py::tuple>(value)) refuse("a per-row input that isn't a tensor of rows");
    py::list found;
    for (const py::handle item : value) found.append(lines(py::reinterpret_borrow<py::object>(item)));
    return is_list ? py::object(found) : py::object(py::tuple(found));
  }
};

/// Behind a layer; `joins`: whether forks join there.
struct LayerExit : Armed {
  LayerExit(const Armed& armed, bool joins) : Armed(armed), joins_(joins) {}
  py::object operator()(const py::object&, const py::object&, const py::object& output) const {
    if (py::isinstance<py::tuple>(output)) {
      const py::tuple items(output);
      for (std::size_t at = 1; at < items.size(); ++at) {
        if (!items[at].is_none() && !is_chosen(items[at]))
          refuse("a layer that returns more than hidden states");
      }
    }
    if (!joins_) return py::none();
    return with_first(output, fire(Step::kValue, first_of(output))[0]);
  }

 private:
  /// Numbers of the keys that its rows chose, which the next layer is given (LayerEntry).
  bool is_chosen(py::handle value) const {
    return is_tensor(value) && !value.attr("is_floating_point")().cast<bool>() &&
           value.attr("dim")().cast<int>() == 3;
  }

  bool joins_;
};

/// The router's logits, alone or among weights and indices, in an order that differs between families: the
/// first floating tensor with a column for each expert.
struct Router : Armed {
  Router(const Armed& armed, std::int64_t experts) : Armed(armed), experts_(experts) {}
  void operator()(const py::object&, const py::object&, const py::object& output) const {
    const bool several = py::isinstance<py::tuple>(output) || py::isinstance<py::list>(output);
    py::list values;
    if (several) {
      values = py::list(output);
    } else {
      values.append(output);
    }
    for (const py::handle value : values) {
      if (!is_tensor(value) || !value.attr("is_floating_point")().cast<bool>()) continue;
      const py::tuple shape(value.attr("shape"));
      if (shape.size() < 2 || shape[shape.size() - 1].cast<std::int64_t>() != experts_) continue;
      fire(Step::kValue, value);
      return;
    }
  }

 private:
  std::int64_t experts_;
};

/// Before the experts; `fused`: whether the fused routine may compute them.
struct ExpertsEntry : Experts {
  ExpertsEntry(const Experts& experts, bool fused) : Experts(experts), fused_(fused) {}
  py::object operator()(const py::object& module, const py::tuple& args, const py::dict& kwargs) const {
    py::list values(args);
    for (const auto& [key, value] : kwargs) values.append(value);
    bool rows = true;
    for (const py::handle value : values)
      rows = rows && is_tensor(value) && value.attr("dim")().cast<int>() == 2;
    if (!rows || values.empty()) {
      fire(Step::kEnter, py::list());
      return py::none();
    }
    // For the fused routine hidden states, index and weights first, then what else has a line for each row.
    const py::list triple = fused_ ? routed_call(module, args, kwargs) : py::list();
    std::vector<std::size_t> order;
    for (const py::handle wanted : triple) {
      for (std::size_t at = 0; at < values.size(); ++at) {
        if (wanted.is(values[at])) order.push_back(at);
      }
    }
    for (std::size_t at = 0; at < values.size(); ++at) {
      if (std::find(order.begin(), order.end(), at) == order.end()) order.push_back(at);
    }
    py::list given;
    for (const std::size_t at : order) given.append(values[at]);
    if (fused_) append_weights(given, module);
    const py::list found = fire(Step::kEnter, std::move(given));
    if (found.empty()) return py::none();
    for (std::size_t at = 0; at < order.size(); ++at) values[order[at]] = found[at];
    py::list positional;
    for (std::size_t at = 0; at < args.size(); ++at) positional.append(values[at]);
    py::dict named;
    std::size_t at = args.size();
    for (const auto& [key, value] : kwargs) named[key] = values[at++];
    return py::make_tuple(py::tuple(positional), named);
  }

 private:
  bool fused_;
};

/// Behind the experts; `patches`: whether contributions are needed.
struct ExpertsExit : Experts {
  ExpertsExit(const Experts& experts, bool patches) : Experts(experts), patches_(patches) {}
  py::object operator()(const py::object& module, const py::tuple& args, const py::dict& kwargs,
                        const py::object& output) const {
    py::list given = patches_ ? routed_call(module, args, kwargs) : py::list();
    if (!patches_) {  // only rows are put back: what the module was given doesn't matter
      for (int at = 0; at < 3; ++at) given.append(first_of(output));
    }
    py::list computed;
    const bool known = patches_ && readable(module);
    if (patches_) {
      py::list asked(given.attr("copy")());
      if (known) append_weights(asked, module);
      computed = fire(Step::kPairs, std::move(asked));
    }
    given.append(first_of(output));
    if (!computed.empty()) {  // forward, not the call: the trace's own hooks hang on the call
      given.append(module.attr("forward")(*py::tuple(computed)));
    } else if (known) {
      append_weights(given, module);
    }
    const py::list found = fire(Step::kLeave, std::move(given));
    return found.empty() ? py::none() : with_first(output, found[0]);
  }

 private:
  bool patches_;
};

void arm_one(HookScope& scope, const Pass& pass, const Hook& own, const Armed& armed,
             const py::object& anatomy, const py::object& routed_call) {
  if (own.place == Place::kEmbedding) return scope.behind(anatomy.attr("embedding"), Output(armed));
  const auto at = static_cast<std::size_t>(own.layer);
  const py::object layer = anatomy.attr("layers").cast<py::tuple>()[at];
  if (own.place == Place::kLayerEntry) return scope.before(layer, LayerEntry(armed));
  if (own.place == Place::kLayerExit) return scope.behind(layer, LayerExit(armed, own.joins));
  const py::object site = anatomy.attr("sites").cast<py::tuple>()[at];
  const py::object block = site.attr("block");
  const auto experts = [&] { return Experts(armed, routed_call, pass.facts(own.layer).layout); };
  switch (own.place) {
    case Place::kNorm:
      for (const py::handle child : layer.attr("children")()) {
        if (!child.is(block)) scope.behind(py::reinterpret_borrow<py::object>(child), Beside(armed));
      }
      return;
    case Place::kBlockEntry:
      return scope.before(block, BlockEntry(armed));
    case Place::kBlockExit:
      return scope.behind(block, Watched(armed));
    case Place::kBlockOutput:
      return scope.behind(block, Output(armed));
    case Place::kExpertsEntry:
      return scope.before(site.attr("experts"),
                          ExpertsEntry(experts(), pass.facts(own.layer).fused_from > 0));
    case Place::kExpertsExit:
      return scope.behind(site.attr("experts"), ExpertsExit(experts(), pass.routed().count(own.layer) > 0),
                          true);
    default:
      if (!site.attr("router").is_none()) {
        scope.behind(site.attr("router"), Router(armed, pass.facts(own.layer).expert_count));
      }
  }
}

/// Every hook of a pass, on the modules of an anatomy.
void arm(HookScope& scope, const Pass& pass, const py::object& anatomy, const py::object& routed_call) {
  const auto torch = std::make_shared<Torch>();
  for (const Hook& own : pass.hooks())
    arm_one(scope, pass, own, Armed(torch, own.site), anatomy, routed_call);
}

}  // namespace

void init_scope(py::module_& m) {
  py::class_<HookScope>(
      m, "HookScope",
      "Hooks on modules: armed in order, removed in reverse when the scope is left, also after "
      "an exception or an interrupt.")
      .def(py::init<>())
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](HookScope& scope, const py::args&) { scope.close(); })
      .def("pause", &HookScope::pause,
           "Take every hook off for a time, so that a module runs as it does by itself.")
      .def("resume", &HookScope::resume, "Put on again what `pause` took off, in the same order.")
      .def("close", &HookScope::close, "Remove every hook, the last armed first.")
      .def(
          "before",
          [](HookScope& scope, const py::object& module, const py::object& function) {
            scope.hook(module, "register_forward_pre_hook", function, true);
          },
          py::arg("module"), py::arg("function"),
          "function(module, args, kwargs) before each call of a module.")
      .def(
          "behind",
          [](HookScope& scope, const py::object& module, const py::object& function) {
            scope.hook(module, "register_forward_hook", function, true);
          },
          py::arg("module"), py::arg("function"),
          "function(module, args, kwargs, output) behind each call of a module.")
      .def("arm", &arm, py::arg("run"), py::arg("anatomy"), py::arg("routed_call"),
           "Every hook of a pass, on the modules of an anatomy. `routed_call` reads hidden states, index and "
           "weights from the call of an experts module.");
}
