#include "moetrace/experts/layout.h"

#include <cmath>

namespace moetrace::experts {

namespace {

Tensor like(double value, const Tensor& other) {
  const Tensor one = ops::from_vector(std::vector<double>{value}, {}, ScalarType::Double);
  return ops::to_device(ops::to(one, other.scalar_type()), other);
}

Tensor activated(const Tensor& value, const Gate& gate) {
  switch (gate.activation) {
    case Activation::kGelu:
      return ops::gelu(value, "none");
    case Activation::kGeluTanh:
      return ops::gelu(value, "tanh");
    case Activation::kRelu:
      return ops::relu(value);
    case Activation::kReluSquared: {
      const Tensor positive = ops::relu(value);
      return ops::mul(positive, positive);
    }
    default:
      if (gate.slope == 1.0) return ops::silu(value);
      return ops::mul(value, ops::sigmoid(ops::mul(value, like(gate.slope, value))));
  }
}

}  // namespace

Tensor Gate::operator()(const Tensor& both) const {
  if (!gated) return activated(both, *this);
  const std::int64_t columns = both.size(1);
  Tensor first = interleaved ? ops::slice(both, 1, 0, columns, 2) : ops::narrow(both, 1, 0, columns / 2);
  Tensor up =
      interleaved ? ops::slice(both, 1, 1, columns, 2) : ops::narrow(both, 1, columns / 2, columns / 2);
  const bool limited = std::isfinite(limit);
  if (limited && !limits_activated) first = ops::clamp(first, std::nullopt, like(limit, first));
  Tensor value = activated(first, *this);
  if (limited && limits_activated) value = ops::clamp(value, std::nullopt, like(limit, value));
  if (limited) up = ops::clamp(up, like(-limit, up), like(limit, up));
  if (shift != 0.0) up = ops::add(up, like(shift, up));
  return ops::mul(value, up);
}

}  // namespace moetrace::experts
