#include "moetrace/hooks/rows.h"

#include "moetrace/hooks/failure.h"

namespace moetrace::hooks {

const Tensor& RowIndex::on(const Tensor& like) const {
  if (!tensor_ || tensor_->device() != like.device()) {
    tensor_ = ops::to_device(ops::from_vector(rows_, {size()}, ScalarType::Long), like);
  }
  return *tensor_;
}

std::string shape_text(const Tensor& value) {
  std::string text;
  for (const std::int64_t size : value.sizes()) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

Tensor as_rows(const Tensor& value, std::int64_t rows, const std::string& site) {
  const std::int64_t width = value.dim() < 1 ? 0 : value.size(value.dim() - 1);
  const std::int64_t found = width == 0 ? 0 : value.numel() / width;
  if (value.dim() < 2 || found != rows) {
    throw Failure(Trouble::kShape, site + ": expected " + std::to_string(rows) +
                                       " rows of hidden states, found a tensor of shape " +
                                       shape_text(value));
  }
  return ops::reshape(value, {rows, width});
}

Tensor rows_of_cases(const Tensor& value, std::int64_t cases, const std::vector<std::int64_t>& source) {
  const std::int64_t count = static_cast<std::int64_t>(source.size()) / cases;
  const std::int64_t step = value.size(0) == cases ? value.size(1) : 0;  // one line may serve every case
  std::vector<std::int64_t> flat(source);
  for (std::int64_t at = 0; at < cases * count; ++at) flat[static_cast<std::size_t>(at)] += at / count * step;
  std::vector<std::int64_t> shape = ops::shape_of(value);
  std::vector<std::int64_t> lines{shape[0] * shape[1]};
  lines.insert(lines.end(), shape.begin() + 2, shape.end());
  shape[0] = cases;
  shape[1] = count;
  return ops::reshape(ops::index_select(ops::reshape(value, lines), RowIndex(std::move(flat)).on(value)),
                      shape);
}

}  // namespace moetrace::hooks
