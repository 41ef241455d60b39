#include "moetrace/hooks/row_sites.h"

#include <stdexcept>
#include <utility>

namespace moetrace::hooks {

OverwriteRows::OverwriteRows(std::string name, std::int64_t rows, at::Tensor destination, at::Tensor source)
    : Site(std::move(name)), rows_(rows), destination_(std::move(destination)), source_(std::move(source)) {
  if (destination_.sizes() != source_.sizes()) {
    throw std::invalid_argument(this->name() + ": as many rows to write as rows to read are needed");
  }
}

at::Tensor OverwriteRows::apply(const at::Tensor& value) {
  const at::Tensor flat = as_rows(value, rows_, name());
  const at::Tensor clean = flat.index_select(0, source_.to(value.device()));
  return flat.index_copy(0, destination_.to(value.device()), clean).reshape(value.sizes());
}

AddRows::AddRows(std::string name, std::int64_t rows, at::Tensor destination, at::Tensor addend)
    : Site(std::move(name)), rows_(rows), destination_(std::move(destination)), addend_(std::move(addend)) {
  if (addend_.dim() != 2 || addend_.size(0) != destination_.numel()) {
    throw std::invalid_argument(this->name() + ": one vector for each row is needed");
  }
}

at::Tensor AddRows::apply(const at::Tensor& value) {
  const at::Tensor flat = as_rows(value, rows_, name());
  const at::Tensor where = destination_.to(value.device());
  const at::Tensor sum = flat.index_select(0, where).to(at::kFloat).add(addend_.to(value.device()));
  return flat.index_copy(0, where, sum.to(value.scalar_type())).reshape(value.sizes());
}

GrowRows::GrowRows(std::string name, at::Tensor source) : Site(std::move(name)), source_(std::move(source)) {}

at::Tensor GrowRows::apply(const at::Tensor& value) {
  if (value.dim() != 3 || value.size(0) != source_.size(0)) {
    throw std::invalid_argument(name() + ": expected hidden states of (batch, rows, width)");
  }
  return at::cat({value, gather_rows(value, source_)}, 1);
}

at::Tensor gather_rows(const at::Tensor& value, const at::Tensor& source) {
  if (value.dim() < 2 || source.dim() != 2 || value.size(0) != source.size(0)) {
    throw std::invalid_argument("gather_rows: expected (batch, rows, …) and (batch, n) with the same batch");
  }
  std::vector<std::int64_t> shape = source.sizes().vec();
  at::Tensor index = source.to(value.device());
  for (std::int64_t axis = 2; axis < value.dim(); ++axis) {
    index = index.unsqueeze(-1);
    shape.push_back(value.size(axis));
  }
  return value.gather(1, index.expand(shape));
}

}  // namespace moetrace::hooks
