// What users hang on the modules of a model of their own, in forwards of their own.

#include "forward_hooks.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

namespace moetrace::bindings {

namespace {

/// What went wrong at a site, as an error of the package: LibTorch passes on the message alone.
[[noreturn]] void raise_own(const Site& site, py::error_already_set& error) {
  const auto& failure = site.failure();
  const std::string text = error.what();
  if (!failure || text.find(failure->what()) == std::string::npos) throw;
  const bool contribution = failure->trouble() == Trouble::kContribution;
  const py::object kind =
      py::module_::import("moetrace.errors").attr(contribution ? "ContributionError" : "HookError");
  py::set_error(kind, failure->what());
  throw py::error_already_set();
}

/// A site, and the forward that it is fired in.
class InForward {
 public:
  InForward(std::shared_ptr<Site> site, std::shared_ptr<hooks::Forward> forward)
      : site_(std::move(site)), forward_(std::move(forward)), fire_(Torch().fire) {}

 protected:
  bool idle() const { return Quiet::is_on() || !forward_->running(); }
  py::list fire(Step step, py::list given) const {
    try {
      return fire_(site_->number(), static_cast<std::int64_t>(step), std::move(given));
    } catch (py::error_already_set& error) {
      raise_own(*site_, error);
    }
  }
  static py::list one(const py::object& value) {
    py::list given;
    given.append(value);
    return given;
  }
  /// What the user's function gives; the model runs unwatched inside of it.
  template <typename... Args>
  static py::object ask(const py::object& function, Args&&... args) {
    const Quiet quiet;
    return function(std::forward<Args>(args)...);
  }
  const std::string& name() const { return site_->name(); }

 private:
  std::shared_ptr<Site> site_;
  std::shared_ptr<hooks::Forward> forward_;
  py::object fire_;
};

struct TapHook : InForward {
  TapHook(std::shared_ptr<Site> site, std::shared_ptr<hooks::Forward> forward)
      : InForward(std::move(site), std::move(forward)) {}
  py::object operator()(const py::object&, const py::object&, const py::object&,
                        const py::object& output) const {
    if (idle()) return py::none();
    const py::list found = fire(Step::kValue, one(first_of(output)));
    return found.empty() ? py::none() : with_first(output, found[0]);
  }
};

struct PatchHook : InForward {
  PatchHook(std::shared_ptr<Site> site, std::shared_ptr<hooks::Forward> forward, py::object function)
      : InForward(std::move(site), std::move(forward)), function_(std::move(function)) {}
  py::object operator()(const py::object&, const py::object&, const py::object&,
                        const py::object& output) const {
    if (idle()) return py::none();
    const py::object value = first_of(output);
    const py::list present = fire(Step::kValue, one(value));
    if (present.empty()) return py::none();
    py::list given = one(value);
    given.append(ask(function_, present[0]));
    return with_first(output, fire(Step::kWrite, std::move(given))[0]);
  }

 private:
  py::object function_;
};

/// Before experts: index and weights are read from the call, and put back into it.
struct RoutingHook : InForward {
  RoutingHook(std::shared_ptr<Site> site, std::shared_ptr<hooks::Forward> forward, py::object call)
      : InForward(std::move(site), std::move(forward)), call_(std::move(call)) {}

 protected:
  py::list routing(const py::object& module, const py::tuple& args, const py::dict& kwargs) const {
    const py::list triple(call_(module, args, kwargs, name()));
    py::list found;
    found.append(triple[1]);
    found.append(triple[2]);
    return found;
  }
  static py::object with_routing(const py::tuple& args, const py::dict& kwargs, const py::list& before,
                                 const py::list& behind) {
    const auto other = [&](py::handle value) {
      for (std::size_t at = 0; at < before.size(); ++at) {
        if (value.is(before[at])) return py::object(behind[at]);
      }
      return py::reinterpret_borrow<py::object>(value);
    };
    py::list positional;
    for (const py::handle value : args) positional.append(other(value));
    py::dict named;
    for (const auto& [key, value] : kwargs) named[key] = other(value);
    return py::make_tuple(py::tuple(positional), named);
  }

 private:
  py::object call_;
};

struct TapRoutingHook : RoutingHook {
  explicit TapRoutingHook(const RoutingHook& hook) : RoutingHook(hook) {}
  py::object operator()(const py::object& module, const py::tuple& args, const py::dict& kwargs) const {
    if (idle()) return py::none();
    const py::list before = routing(module, args, kwargs);
    const py::list found = fire(Step::kValue, py::list(before.attr("copy")()));
    return found.empty() ? py::none() : with_routing(args, kwargs, before, found);
  }
};

struct PatchRoutingHook : RoutingHook {
  PatchRoutingHook(const RoutingHook& hook, py::object function)
      : RoutingHook(hook), function_(std::move(function)) {}
  py::object operator()(const py::object& module, const py::tuple& args, const py::dict& kwargs) const {
    if (idle()) return py::none();
    const py::list before = routing(module, args, kwargs);
    py::list given(before.attr("copy")());
    const py::list present = fire(Step::kValue, py::list(before.attr("copy")()));
    if (present.empty()) return py::none();
    for (const py::handle value : ask(function_, present[0], present[1])) given.append(value);
    return with_routing(args, kwargs, before, fire(Step::kWrite, std::move(given)));
  }

 private:
  py::object function_;
};

/// Behind experts: the pairs that the compiled routines don't know are computed by the module itself.
class ContributionsHook : InForward {
 public:
  ContributionsHook(const std::shared_ptr<experts::ContributionTap>& tap,
                    std::shared_ptr<hooks::Forward> forward, Experts experts, py::object function)
      : InForward(tap, std::move(forward)), experts_(std::move(experts)), function_(std::move(function)) {}
  void operator()(const py::object& module, const py::tuple& args, const py::dict& kwargs,
                  const py::object& output) const {
    if (idle()) return;
    py::list given = experts_.routed_call(module, args, kwargs);
    py::list pairs(given.attr("copy")());
    const bool known = experts_.readable(module);
    if (known) experts_.append_weights(pairs, module);
    const py::list computed = fire(Step::kPairs, std::move(pairs));
    given.append(first_of(output));
    if (!computed.empty()) {  // forward, not the call: hooks hang on the call
      given.append(ask(module.attr("forward"), *py::tuple(computed)));
    } else if (known) {
      experts_.append_weights(given, module);
    }
    ask(function_, *py::tuple(fire(Step::kLeave, std::move(given))));
  }

 private:
  Experts experts_;
  py::object function_;
};

}  // namespace

py::object tap_hook(std::shared_ptr<hooks::Tap> tap, std::shared_ptr<hooks::Forward> forward) {
  return py::cpp_function(TapHook(std::move(tap), std::move(forward)));
}

py::object tap_routing_hook(std::shared_ptr<hooks::Tap> tap, std::shared_ptr<hooks::Forward> forward,
                            const py::object& routed_call) {
  return py::cpp_function(TapRoutingHook(RoutingHook(std::move(tap), std::move(forward), routed_call)));
}

py::object patch_hook(std::shared_ptr<hooks::TokenPatch> patch, std::shared_ptr<hooks::Forward> forward,
                      const py::object& function) {
  return py::cpp_function(PatchHook(std::move(patch), std::move(forward), function));
}

py::object patch_routing_hook(std::shared_ptr<hooks::TokenPatch> patch,
                              std::shared_ptr<hooks::Forward> forward, const py::object& routed_call,
                              const py::object& function) {
  return py::cpp_function(
      PatchRoutingHook(RoutingHook(std::move(patch), std::move(forward), routed_call), function));
}

py::object contributions_hook(std::shared_ptr<experts::ContributionTap> tap,
                              std::shared_ptr<hooks::Forward> forward, const py::object& routed_call,
                              std::optional<Layout> layout, const py::object& function) {
  if (layout) tap->set_layout(*layout);
  Experts experts(Armed(std::make_shared<Torch>(), tap), routed_call, layout);
  return py::cpp_function(ContributionsHook(tap, std::move(forward), std::move(experts), function));
}

}  // namespace moetrace::bindings
