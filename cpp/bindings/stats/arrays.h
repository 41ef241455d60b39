#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <vector>

#include "moetrace/stats/matrix.h"

namespace moetrace::bindings {

namespace py = pybind11;

/// Arguments: converted and copied only where type or layout differ.
template <class T>
using ArrayIn = py::array_t<T, py::array::c_style | py::array::forcecast>;

inline stats::MatrixView view_of(const ArrayIn<double>& array) {
  if (array.ndim() != 2) throw std::invalid_argument("expected an array of two dimensions");
  return {array.data(), array.shape(0), array.shape(1), Eigen::OuterStride<>(array.shape(1))};
}

template <class T>
std::span<const T> span_of(const ArrayIn<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

/// `values` as rows of this width.
template <class T>
py::array_t<T> array_of(const std::vector<T>& values, std::size_t width) {
  const std::size_t rows = width == 0 ? 0 : values.size() / width;
  return py::array_t<T>({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(width)}, values.data());
}

}  // namespace moetrace::bindings
