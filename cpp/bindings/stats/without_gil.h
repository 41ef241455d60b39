#pragma once

#include <pybind11/pybind11.h>

#include "moetrace/stats/parallel.h"

namespace moetrace::bindings {

/// Runs work(interrupt) with the GIL released. Ctrl-C, or any other signal whose Python handler raises,
/// stops the work at its next check and is raised here.
template <class Work>
auto without_gil(Work&& work) {
  const stats::Interrupt interrupt = [] {
    const pybind11::gil_scoped_acquire held;
    return PyErr_CheckSignals() != 0;
  };
  try {
    const pybind11::gil_scoped_release released;
    return work(interrupt);
  } catch (const stats::Interrupted&) {
    throw pybind11::error_already_set();
  }
}

}  // namespace moetrace::bindings
