#pragma once

#include <pybind11/stl.h>

#include "moetrace/tree/cost.h"

// A list of runs may be long and is given with every case: Python keeps it as one object.
PYBIND11_MAKE_OPAQUE(moetrace::tree::Runs)
