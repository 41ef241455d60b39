// The one file that touches Python's modules: it arms hooks, takes tensors out of calls and puts them back.

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.h"
#include "moetrace/pass/pass.h"

namespace py = pybind11;
using moetrace::experts::Layout;
using moetrace::hooks::Failure;
using moetrace::hooks::Site;
using moetrace::hooks::Step;
using moetrace::hooks::Trouble;
using moetrace::pass::Hook;
using moetrace::pass::Pass;
using moetrace::pass::Place;

namespace {

constexpr std::array<std::string_view, 7> kPassedOn{
    "past_key_values",   "past_key_value",       "use_cache",           "cache_position",
    "output_attentions", "output_router_logits", "output_hidden_states"};
constexpr std::array<std::string_view, 2> kPerRow{"position_ids", "position_embeddings"};

template <std::size_t N>
bool contains(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// What every hook of a scope needs of torch.
struct Torch {
  py::object fire = py::module_::import("torch").attr("ops").attr("moetrace").attr("fire").attr("default");
  py::object tensor = py::module_::import("torch").attr("Tensor");

  bool is_tensor(py::handle value) const { return py::isinstance(value, tensor); }
};

/// One hook: a site and what it is fired with.
class Armed {
 public:
  Armed(std::shared_ptr<Torch> torch, std::shared_ptr<Site> site)
      : torch_(std::move(torch)), site_(std::move(site)) {}

 protected:
  py::list fire(Step step, py::list given) const {
    return torch_->fire(site_->number(), static_cast<std::int64_t>(step), std::move(given));
  }
  py::list fire(Step step, py::handle value) const {
    if (!is_tensor(value)) {
      const std::string kind = py::str(py::type::handle_of(value).attr("__name__"));
      site_->refuse(
          Failure(Trouble::kShape, name() + ": expected a tensor of hidden states, found a " + kind), step);
    }
    py::list given;
    given.append(value);
    return fire(step, std::move(given));
  }
  bool is_tensor(py::handle value) const { return torch_->is_tensor(value); }
  [[noreturn]] void refuse(const std::string& why) const {
    site_->refuse(Failure(Trouble::kCannotJoin, why));
  }
  const std::string& name() const { return site_->name(); }

 private:
  std::shared_ptr<Torch> torch_;
  std::shared_ptr<Site> site_;
};

/// The hidden states that a module returns, alone or first in a tuple.
py::object first_of(const py::object& output) {
  return py::isinstance<py::tuple>(output) ? py::object(output.cast<py::tuple>()[0]) : output;
}

py::object with_first(const py::object& output, const py::object& value) {
  if (!py::isinstance<py::tuple>(output)) return value;
  py::list items(output);
  items[0] = value;
  return py::tuple(items);
}

py::object hidden_of(const py::tuple& args, const py::dict& kwargs) {
  if (!args.empty()) return args[0];
  return kwargs.contains("hidden_states") ? py::object(kwargs["hidden_states"]) : py::none();
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
    if (args.size() > 1 || !is_tensor(hidden)) refuse("positional inputs beside the hidden states");
    py::dict given;
    for (const auto& [key, value] : kwargs) {
      const std::string name = py::str(key);
      if (name == "hidden_states") continue;
      given[key] = input(name, py::reinterpret_borrow<py::object>(value));
    }
    return py::make_tuple(py::make_tuple(fire(Step::kValue, hidden)[0]), given);
  }

 private:
  py::object input(const std::string& name, const py::object& value) const {
    if (value.is_none() || contains(kPassedOn, name)) return value;
    if (name == "attention_mask") {
      if (!is_tensor(value)) refuse("an attention mask that isn't a tensor");
      return fire(Step::kMask, value)[0];
    }
    if (contains(kPerRow, name)) return lines(value);
    refuse(name);
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
        if (!items[at].is_none()) refuse("a layer that returns more than hidden states");
      }
    }
    if (!joins_) return py::none();
    return with_first(output, fire(Step::kValue, first_of(output))[0]);
  }

 private:
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

/// Around an experts module. `call`: reads hidden states, index and weights from its arguments, or raises.
struct Experts : Armed {
  Experts(const Armed& armed, py::object call, std::optional<Layout> layout)
      : Armed(armed), call_(std::move(call)), layout_(layout) {}

 protected:
  py::list routed_call(const py::object& module, const py::tuple& args, const py::dict& kwargs) const {
    return py::list(call_(module, args, kwargs, name()));
  }
  void append_weights(py::list& given, const py::object& module) const {
    const std::string up = layout_->gate.gated ? "gate_up_proj" : "up_proj";
    given.append(module.attr(up.c_str()));
    given.append(module.attr("down_proj"));
    if (!layout_->biased) return;
    given.append(module.attr((up + "_bias").c_str()));
    given.append(module.attr("down_proj_bias"));
  }
  /// Whether the compiled routines can read the module's weights now: offloaded ones aren't in memory.
  bool readable(const py::object& module) const {
    return layout_ && !module.attr("down_proj").attr("is_meta").cast<bool>();
  }

 private:
  py::object call_;
  std::optional<Layout> layout_;
};

/// Before the experts: rows of index and weights become other rows'.
struct Routing : Experts {
  explicit Routing(const Experts& experts) : Experts(experts) {}
  py::object operator()(const py::object& module, const py::tuple& args, const py::dict& kwargs) const {
    const py::list triple = routed_call(module, args, kwargs);
    py::list given;
    given.append(triple[1]);
    given.append(triple[2]);
    const py::list found = fire(Step::kValue, std::move(given));
    const auto replaced = [&](py::handle value) {
      for (std::size_t at = 0; at < 2; ++at) {
        if (value.is(triple[at + 1])) return py::object(found[at]);
      }
      return py::reinterpret_borrow<py::object>(value);
    };
    py::list positional;
    for (const py::handle value : args) positional.append(replaced(value));
    py::dict named;
    for (const auto& [key, value] : kwargs) named[key] = replaced(value);
    return py::make_tuple(py::tuple(positional), named);
  }
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

/// Hooks on modules, armed in order and removed in reverse, also after an exception or an interrupt.
class HookScope {
 public:
  py::object hook(const py::object& module, const char* kind, const py::object& function, bool kwargs) {
    try {
      handles_.append(module.attr(kind)(function, py::arg("with_kwargs") = kwargs));
    } catch (const py::error_already_set&) {  // an interrupt may come when the hook hangs already
      forget(module, function);
      throw;
    }
    return function;
  }

  void arm(const Pass& pass, const py::object& anatomy, const py::object& routed_call) {
    const auto torch = std::make_shared<Torch>();
    for (const Hook& own : pass.hooks()) arm_one(pass, own, Armed(torch, own.site), anatomy, routed_call);
  }

  /// Take every hook off for a time, so that a module runs as it does by itself.
  void pause() {
    for (const py::handle handle : handles_) {
      const py::object hooks = handle.attr("hooks_dict_ref")();
      const py::object key = handle.attr("id");
      paused_.append(py::make_tuple(hooks, key, hooks.attr("pop")(key)));
    }
  }

  void resume() {
    for (const py::handle own : std::exchange(paused_, py::list())) {
      const auto hook = own.cast<py::tuple>();
      hook[0][hook[1]] = hook[2];
    }
  }

  /// The last armed goes first. A hook that can't be removed doesn't keep the others.
  void close() {
    std::exception_ptr failure;
    while (!handles_.empty()) {
      const py::object last = handles_.attr("pop")();
      try {
        last.attr("remove")();
      } catch (const py::error_already_set& error) {
        if (!failure) failure = std::current_exception();
        if (error.matches(PyExc_KeyboardInterrupt)) remove_again(last);
      }
    }
    if (failure) std::rethrow_exception(failure);
  }

 private:
  /// Once more after an interrupt, which may have come before the hook was gone. What fails twice stays.
  static void remove_again(const py::object& handle) {
    try {
      handle.attr("remove")();
    } catch (const py::error_already_set&) {  // the first failure is the one that is told
    }
  }

  /// Take a hook without a handle off a module.
  static void forget(const py::object& module, const py::object& function) {
    for (const char* name : {"_forward_hooks", "_forward_pre_hooks"}) {
      const py::object hooks = module.attr(name);
      for (const py::handle key : py::list(hooks)) {
        const py::object own = hooks[key];
        if (!own.is(function)) continue;
        hooks.attr("pop")(key);
        module.attr((std::string(name) + "_with_kwargs").c_str()).attr("pop")(key, py::none());
      }
    }
  }

  template <typename Function>
  void behind(const py::object& module, Function function, bool kwargs = false) {
    hook(module, "register_forward_hook", py::cpp_function(std::move(function)), kwargs);
  }
  template <typename Function>
  void before(const py::object& module, Function function) {
    hook(module, "register_forward_pre_hook", py::cpp_function(std::move(function)), true);
  }

  void arm_one(const Pass& pass, const Hook& own, const Armed& armed, const py::object& anatomy,
               const py::object& routed_call) {
    if (own.place == Place::kEmbedding) return behind(anatomy.attr("embedding"), Output(armed));
    const auto at = static_cast<std::size_t>(own.layer);
    const py::object layer = anatomy.attr("layers").cast<py::tuple>()[at];
    if (own.place == Place::kLayerEntry) return before(layer, LayerEntry(armed));
    if (own.place == Place::kLayerExit) return behind(layer, LayerExit(armed, own.joins));
    const py::object site = anatomy.attr("sites").cast<py::tuple>()[at];
    const py::object block = site.attr("block");
    const auto experts = [&] { return Experts(armed, routed_call, pass.facts(own.layer).layout); };
    switch (own.place) {
      case Place::kNorm:
        for (const py::handle child : layer.attr("children")()) {
          if (!child.is(block)) behind(py::reinterpret_borrow<py::object>(child), Beside(armed));
        }
        return;
      case Place::kBlockEntry:
        return before(block, BlockEntry(armed));
      case Place::kBlockExit:
        return behind(block, Watched(armed));
      case Place::kBlockOutput:
        return behind(block, Output(armed));
      case Place::kRouting:
        return before(site.attr("experts"), Routing(experts()));
      case Place::kExpertsEntry:
        return before(site.attr("experts"), ExpertsEntry(experts(), pass.facts(own.layer).fused_from > 0));
      case Place::kExpertsExit:
        return behind(site.attr("experts"), ExpertsExit(experts(), pass.routed().count(own.layer) > 0), true);
      default:
        if (!site.attr("router").is_none()) {
          behind(site.attr("router"), Router(armed, pass.facts(own.layer).expert_count));
        }
    }
  }

  py::list handles_;
  py::list paused_;  ///< (registry, key, hook)
};

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
      .def("arm", &HookScope::arm, py::arg("run"), py::arg("anatomy"), py::arg("routed_call"),
           "Every hook of a pass, on the modules of an anatomy. `routed_call` reads hidden states, index and "
           "weights from the call of an experts module.");
}
