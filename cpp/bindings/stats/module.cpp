#include "parts.h"

PYBIND11_MODULE(_stats, module) {
  module.doc() = "Resampling statistics; knows nothing of torch. moetrace.stats is the interface to it.";
  moetrace::bindings::bind_random(module);
  moetrace::bindings::bind_bootstrap(module);
  moetrace::bindings::bind_tests(module);
}
