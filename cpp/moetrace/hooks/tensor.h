#pragma once

// The boundary to LibTorch: its stable ABI alone, so that one build serves every torch of a range of
// versions. Operators are reached through the dispatcher, on whatever device a tensor is and with gradients
// where they are on.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace moetrace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace ops {

/// Call an operator of LibTorch. `args`: all of its schema, in order.
template <typename Result, typename... Args>
Result call(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  if (torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS) {
    throw std::runtime_error(std::string(name) + " failed");
  }
  return torch::stable::detail::to<Result>(stack[0]);
}

inline Tensor index_select(const Tensor& value, const Tensor& rows) {
  return call<Tensor>("aten::index_select", "", value, std::int64_t{0}, rows);
}
inline Tensor index_copy(const Tensor& value, const Tensor& rows, const Tensor& source) {
  return call<Tensor>("aten::index_copy", "", value, std::int64_t{0}, rows, source);
}
inline Tensor cat(const std::vector<Tensor>& parts, std::int64_t axis) {
  return call<Tensor>("aten::cat", "", parts, axis);
}
inline Tensor stack(const std::vector<Tensor>& parts) {
  return call<Tensor>("aten::stack", "", parts, std::int64_t{0});
}
inline Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias = {}) {
  return call<Tensor>("aten::linear", "", input, weight, bias);
}
inline Tensor silu(const Tensor& value) { return call<Tensor>("aten::silu", "", value); }
inline Tensor sigmoid(const Tensor& value) { return call<Tensor>("aten::sigmoid", "", value); }
inline Tensor relu(const Tensor& value) { return call<Tensor>("aten::relu", "", value); }
/// `approximate`: "none" or "tanh".
inline Tensor gelu(const Tensor& value, const std::string& approximate) {
  return call<Tensor>("aten::gelu", "", value, approximate);
}
inline Tensor clamp(const Tensor& value, const std::optional<Tensor>& least,
                    const std::optional<Tensor>& most) {
  return call<Tensor>("aten::clamp", "Tensor", value, least, most);
}
inline Tensor slice(const Tensor& value, std::int64_t axis, std::int64_t begin, std::int64_t end,
                    std::int64_t step) {
  return call<Tensor>("aten::slice", "Tensor", value, axis, std::optional<std::int64_t>(begin),
                      std::optional<std::int64_t>(end), step);
}
inline Tensor transpose(const Tensor& value) { return torch::stable::transpose(value, 0, 1); }
inline Tensor mul(const Tensor& a, const Tensor& b) { return call<Tensor>("aten::mul", "Tensor", a, b); }
inline Tensor bmm(const Tensor& a, const Tensor& b) { return call<Tensor>("aten::bmm", "", a, b); }
inline Tensor sqrt(const Tensor& value) { return call<Tensor>("aten::sqrt", "", value); }
inline Tensor abs(const Tensor& value) { return call<Tensor>("aten::abs", "", value); }
inline bool equal(const Tensor& a, const Tensor& b) { return call<bool>("aten::equal", "", a, b); }
inline Tensor sub(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b); }
/// a + b, bit for bit: the stable ABI has subtraction with a factor, and addition only with a boxed scalar.
inline Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }
inline Tensor reshape(const Tensor& value, const std::vector<std::int64_t>& shape) {
  return torch::stable::reshape(value, {shape.data(), shape.size()});
}
inline Tensor narrow(const Tensor& value, std::int64_t axis, std::int64_t begin, std::int64_t length) {
  Tensor same = value;
  return torch::stable::narrow(same, axis, begin, length);
}
inline Tensor sum(const Tensor& value, std::int64_t axis) {
  const std::array<std::int64_t, 1> axes{axis};
  return torch::stable::sum(value, torch::headeronly::IntHeaderOnlyArrayRef(axes.data(), axes.size()));
}
inline Tensor to(const Tensor& value, ScalarType dtype) {
  return value.scalar_type() == dtype ? value : torch::stable::to(value, dtype);
}
/// On the device of `like`.
inline Tensor to_device(const Tensor& value, const Tensor& like) {
  return value.device() == like.device() ? value : torch::stable::to(value, like.device());
}
inline Tensor to_cpu(const Tensor& value) {
  if (value.is_cpu()) return value;
  return torch::stable::to(value, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}
inline Tensor empty(const std::vector<std::int64_t>& shape, ScalarType dtype) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype);
}
inline std::vector<std::int64_t> shape_of(const Tensor& value) {
  const auto sizes = value.sizes();
  return {sizes.begin(), sizes.end()};
}

/// A new tensor on the processor with these numbers.
template <typename T>
Tensor from_vector(const std::vector<T>& values, const std::vector<std::int64_t>& shape, ScalarType dtype) {
  Tensor result = empty(shape, dtype);
  std::copy(values.begin(), values.end(), static_cast<T*>(result.mutable_data_ptr()));
  return result;
}

/// The numbers of a tensor, row-major; `dtype` must be the type that T stands for.
template <typename T>
std::vector<T> to_vector(const Tensor& value, ScalarType dtype) {
  const Tensor whole = torch::stable::contiguous(to_cpu(to(value, dtype)));
  const T* first = static_cast<const T*>(whole.const_data_ptr());
  return {first, first + whole.numel()};
}

}  // namespace ops
}  // namespace moetrace
