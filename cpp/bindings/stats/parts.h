#pragma once

#include <pybind11/pybind11.h>

namespace moetrace::bindings {

void bind_random(pybind11::module_& module);
void bind_bootstrap(pybind11::module_& module);
void bind_tests(pybind11::module_& module);

}  // namespace moetrace::bindings
