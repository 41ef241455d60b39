#pragma once

#include <pybind11/pybind11.h>

namespace moetrace::bindings {

namespace py = pybind11;

/// Hooks on modules, armed in order and removed in reverse, also after an exception or an interrupt.
class HookScope {
 public:
  /// `kind`: of torch.nn.Module's methods the one that registers the hook. Gives the function.
  py::object hook(const py::object& module, const char* kind, const py::object& function, bool kwargs);
  /// Take every hook off for a time, so that a module runs as it does by itself.
  void pause();
  void resume();
  /// The last armed goes first. A hook that can't be removed doesn't keep the others.
  void close();

  template <typename Function>
  void behind(const py::object& module, Function function, bool kwargs = false) {
    hook(module, "register_forward_hook", py::cpp_function(std::move(function)), kwargs);
  }
  template <typename Function>
  void before(const py::object& module, Function function) {
    hook(module, "register_forward_pre_hook", py::cpp_function(std::move(function)), true);
  }

 private:
  py::list handles_;
  py::list paused_;  ///< (registry, key, hook)
};

}  // namespace moetrace::bindings
