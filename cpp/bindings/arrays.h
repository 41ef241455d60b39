#pragma once

#include <pybind11/numpy.h>

#include <vector>

// How the core's vectors become numpy arrays, and the other way round.
namespace moetrace::bindings {

namespace py = pybind11;

/// Arguments: converted and copied only where type or layout differ.
template <typename T>
using In = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> grid(const std::vector<T>& cells, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), cells.data());
}

template <typename T>
py::array_t<T> line(const std::vector<T>& cells) {
  return py::array_t<T>(static_cast<py::ssize_t>(cells.size()), cells.data());
}

/// Without a copy: the array keeps `owner` alive and can't be written to.
template <typename T>
py::array view(const std::vector<T>& cells, std::vector<py::ssize_t> shape, py::handle owner) {
  py::array found(py::dtype::of<T>(), std::move(shape), cells.data(), owner);
  py::detail::array_proxy(found.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return found;
}

template <typename T>
std::vector<T> vector_of(const In<T>& values) {
  return {values.data(), values.data() + values.size()};
}

}  // namespace moetrace::bindings
