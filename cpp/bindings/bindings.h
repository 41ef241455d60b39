#pragma once

#include <pybind11/pybind11.h>

// One function for each folder of the core; core.cpp only calls them.
void init_tree(pybind11::module_& m);
void init_experts(pybind11::module_& m);
void init_pass(pybind11::module_& m);
void init_forward(pybind11::module_& m);
void init_scope(pybind11::module_& m);
void init_coalition(pybind11::module_& m);
void init_weights(pybind11::module_& m);
