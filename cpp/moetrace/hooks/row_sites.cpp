#include "moetrace/hooks/row_sites.h"

#include <utility>

namespace moetrace::hooks {

OverwriteRows::OverwriteRows(std::string name, std::int64_t rows, std::vector<std::int64_t> destination,
                             std::vector<std::int64_t> source)
    : Site(std::move(name)), rows_(rows), destination_(std::move(destination)), source_(std::move(source)) {
  if (destination_.size() != source_.size()) {
    throw std::invalid_argument(this->name() + ": as many rows to write as rows to read are needed");
  }
}

std::vector<Tensor> OverwriteRows::apply(Step /*step*/, const std::vector<Tensor>& given) {
  count();
  const Tensor& value = given.at(0);
  const Tensor flat = as_rows(value, rows_, name());
  const Tensor clean = ops::index_select(flat, source_.on(value));
  return {ops::reshape(ops::index_copy(flat, destination_.on(value), clean), ops::shape_of(value))};
}

ChangeRows::ChangeRows(std::string name, std::int64_t rows, std::vector<std::int64_t> destination,
                       std::vector<float> vectors, RowChange change)
    : Site(std::move(name)),
      rows_(rows),
      destination_(std::move(destination)),
      vectors_(std::move(vectors)),
      change_(change) {
  if (destination_.empty() || vectors_.size() % destination_.rows().size() != 0) {
    throw std::invalid_argument(this->name() + ": one vector for each row is needed");
  }
}

std::vector<Tensor> ChangeRows::apply(Step /*step*/, const std::vector<Tensor>& given) {
  count();
  const Tensor& value = given.at(0);
  const Tensor flat = as_rows(value, rows_, name());
  const std::int64_t width = static_cast<std::int64_t>(vectors_.size()) / destination_.size();
  if (flat.size(1) != width) {
    throw Failure(Trouble::kShape, name() + ": expected rows of width " + std::to_string(width) +
                                       ", found a tensor of shape " + shape_text(value));
  }
  const Tensor given_vectors =
      ops::to_device(ops::from_vector(vectors_, {destination_.size(), width}, ScalarType::Float), value);
  const Tensor& rows = destination_.on(value);
  const Tensor changed =
      change_ == RowChange::kReplaced
          ? given_vectors
          : ops::add(ops::to(ops::index_select(flat, rows), ScalarType::Float), given_vectors);
  return {
      ops::reshape(ops::index_copy(flat, rows, ops::to(changed, value.scalar_type())), ops::shape_of(value))};
}

}  // namespace moetrace::hooks
