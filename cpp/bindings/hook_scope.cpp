#include "hook_scope.h"

#include <exception>
#include <string>
#include <utility>

namespace moetrace::bindings {

namespace {

/// Once more after an interrupt, which may have come before the hook was gone. What fails twice stays.
void remove_again(const py::object& handle) {
  try {
    handle.attr("remove")();
  } catch (const py::error_already_set&) {  // the first failure is the one that is told
  }
}

/// Take a hook without a handle off a module.
void forget(const py::object& module, const py::object& function) {
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

}  // namespace

py::object HookScope::hook(const py::object& module, const char* kind, const py::object& function,
                           bool kwargs) {
  try {
    handles_.append(module.attr(kind)(function, py::arg("with_kwargs") = kwargs));
  } catch (const py::error_already_set&) {  // an interrupt may come when the hook hangs already
    forget(module, function);
    throw;
  }
  return function;
}

void HookScope::pause() {
  for (const py::handle handle : handles_) {
    const py::object hooks = handle.attr("hooks_dict_ref")();
    const py::object key = handle.attr("id");
    paused_.append(py::make_tuple(hooks, key, hooks.attr("pop")(key)));
  }
}

void HookScope::resume() {
  for (const py::handle own : std::exchange(paused_, py::list())) {
    const auto hook = own.cast<py::tuple>();
    hook[0][hook[1]] = hook[2];
  }
}

void HookScope::close() {
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

}  // namespace moetrace::bindings
