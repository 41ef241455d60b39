#include "moetrace/weights/layer_reader.h"

#include <pybind11/stl.h>

#include "bindings.h"
#include "stats/without_gil.h"

using namespace moetrace::weights;
namespace py = pybind11;

void init_weights(py::module_& m) {
  py::register_exception<ReadError>(m, "ReadError", PyExc_OSError);

  py::class_<Buffer, std::shared_ptr<Buffer>>(m, "Buffer", py::buffer_protocol(), "Bytes of one layer.")
      .def_buffer([](Buffer& buffer) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(buffer.data()),
                               static_cast<py::ssize_t>(buffer.size()));
      });

  py::class_<Segment>(m, "Segment", "Bytes of a file and where they belong in a layer's buffer.")
      .def(py::init<std::size_t, std::uint64_t, std::uint64_t, std::uint64_t>(), py::arg("file"),
           py::arg("offset"), py::arg("bytes"), py::arg("destination"));

  py::class_<ReadOptions>(m, "ReadOptions", "How a checkpoint is read; lengths in bytes.")
      .def(py::init<std::uint64_t, std::uint64_t, bool>(), py::arg("bytes") = ReadOptions().bytes,
           py::arg("gap") = ReadOptions().gap, py::arg("direct") = ReadOptions().direct);

  py::class_<LayerReader>(m, "LayerReader",
                          "Layers of a checkpoint in two buffers: while one layer is used, a thread reads "
                          "another.")
      .def(py::init<std::vector<std::string>, std::vector<LayerReader::Segments>, ReadOptions>(),
           py::arg("files"), py::arg("layers"), py::arg_v("options", ReadOptions(), "ReadOptions()"),
           "layers: for each layer what is read of which of the files.")
      .def("prefetch", &LayerReader::prefetch, py::arg("layer"), py::call_guard<py::gil_scoped_release>(),
           "Start reading a layer if it isn't there and a buffer is free.")
      .def(
          "acquire",
          [](LayerReader& reader, std::size_t layer) {
            return moetrace::bindings::without_gil(
                [&](const auto& interrupt) { return reader.acquire(layer, interrupt); });
          },
          py::arg("layer"),
          "The layer's bytes, which stay as they are until it is released. Raises ReadError.")
      .def("release", &LayerReader::release, py::arg("layer"),
           "The layer's buffer may be filled with another one.")
      .def("stop", &LayerReader::stop, py::call_guard<py::gil_scoped_release>(),
           "End what is being read, close files and free buffers that aren't in use.")
      .def_property_readonly("bytes_read", &LayerReader::bytes_read)
      .def_property_readonly("seconds_waited", &LayerReader::seconds_waited)
      .def_property_readonly("buffer_bytes", &LayerReader::buffer_bytes);
}
