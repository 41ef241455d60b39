#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "armed.h"
#include "moetrace/experts/contribution_tap.h"
#include "moetrace/hooks/token_sites.h"

/// Hooks of a user's own forwards, each function(module, args, kwargs[, output]).
namespace moetrace::bindings {

/// While one is there, hooks of users' forwards in this thread do nothing: the model runs as it does without.
class Quiet {
 public:
  Quiet() { ++depth(); }
  ~Quiet() { --depth(); }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
  static bool is_on() { return depth() > 0; }

 private:
  static int& depth() {
    thread_local int found = 0;
    return found;
  }
};

/// Behind a module: what it returns is kept.
py::object tap_hook(std::shared_ptr<hooks::Tap> tap, std::shared_ptr<hooks::Forward> forward);
/// Before an experts module: index and weights of its call are kept.
py::object tap_routing_hook(std::shared_ptr<hooks::Tap> tap, std::shared_ptr<hooks::Forward> forward,
                            const py::object& routed_call);
/// Behind a module: function(rows) gives what stands in the chosen rows' place.
py::object patch_hook(std::shared_ptr<hooks::TokenPatch> patch, std::shared_ptr<hooks::Forward> forward,
                      const py::object& function);
/// Before an experts module: function(index, weights) gives what it is called with at the chosen tokens.
py::object patch_routing_hook(std::shared_ptr<hooks::TokenPatch> patch,
                              std::shared_ptr<hooks::Forward> forward, const py::object& routed_call,
                              const py::object& function);
/// Behind an experts module: function(*found) is told what it contributes, see ContributionTap.
py::object contributions_hook(std::shared_ptr<experts::ContributionTap> tap,
                              std::shared_ptr<hooks::Forward> forward, const py::object& routed_call,
                              std::optional<Layout> layout, const py::object& function);

}  // namespace moetrace::bindings
