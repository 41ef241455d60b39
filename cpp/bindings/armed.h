#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "moetrace/experts/layout.h"
#include "moetrace/hooks/site.h"

/// Hooks as Python sees them: each has a site, and fires it.
namespace moetrace::bindings {

namespace py = pybind11;
using experts::Layout;
using hooks::Failure;
using hooks::Site;
using hooks::Step;
using hooks::Trouble;

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
inline py::object first_of(const py::object& output) {
  return py::isinstance<py::tuple>(output) ? py::object(output.cast<py::tuple>()[0]) : output;
}

inline py::object with_first(const py::object& output, const py::object& value) {
  if (!py::isinstance<py::tuple>(output)) return value;
  py::list items(output);
  items[0] = value;
  return py::tuple(items);
}

inline py::object hidden_of(const py::tuple& args, const py::dict& kwargs) {
  if (!args.empty()) return args[0];
  return kwargs.contains("hidden_states") ? py::object(kwargs["hidden_states"]) : py::none();
}

/// Around an experts module. `call`: reads hidden states, index and weights from its arguments, or raises.
struct Experts : Armed {
  Experts(const Armed& armed, py::object call, std::optional<Layout> layout)
      : Armed(armed), call_(std::move(call)), layout_(layout) {}

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

}  // namespace moetrace::bindings
