#include "moetrace/hooks/site.h"

#include <stdexcept>

namespace moetrace::hooks {

at::Tensor Site::fire(const at::Tensor& value) {
  ++fired_;
  return apply(value);
}

at::Tensor as_rows(const at::Tensor& value, std::int64_t rows, const std::string& site) {
  const std::int64_t width = value.dim() < 1 ? 0 : value.size(-1);
  const std::int64_t found = width == 0 ? 0 : value.numel() / width;
  if (value.dim() < 2 || found != rows) {
    std::string shape;
    for (const auto size : value.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    throw std::invalid_argument(site + ": expected " + std::to_string(rows) +
                                " rows of hidden states, found a tensor of shape (" + shape + ")");
  }
  return value.reshape({rows, width});
}

}  // namespace moetrace::hooks
