#include "moetrace/hooks/birth.h"

#include <ATen/ops/equal.h>

#include <stdexcept>
#include <utility>

#include "moetrace/hooks/row_sites.h"

namespace moetrace::hooks {

BirthRows::BirthRows(std::string name, at::Tensor source, at::Tensor written, at::Tensor stream_row)
    : Site(std::move(name)),
      source_(std::move(source)),
      written_(std::move(written)),
      stream_row_(std::move(stream_row)) {
  if (source_.dim() != 2 || written_.dim() != 1 || written_.sizes() != stream_row_.sizes()) {
    throw std::invalid_argument(this->name() + ": source (batch, born), written (n), stream_row (n)");
  }
}

void BirthRows::tell(const at::Tensor& stream, const at::Tensor& block, at::Tensor own) {
  const at::Tensor flat = stream.reshape({-1, stream.size(-1)});
  const auto pick = [&](const at::Tensor& value) {
    return as_rows(value, flat.size(0), name()).index_select(0, stream_row_.to(value.device()));
  };
  stream_ = pick(stream);
  block_ = pick(block);
  own_ = std::move(own);
  if (own_.sizes() != block_.sizes()) {
    throw std::invalid_argument(name() + ": one block output for each written row is needed");
  }
}

bool BirthRows::adds_up(const at::Tensor& output) const {
  if (!stream_.defined()) throw std::runtime_error(name() + ": the stream must be told first");
  const at::Tensor flat = output.reshape({-1, output.size(-1)});
  const at::Tensor found = flat.index_select(0, stream_row_.to(output.device()));
  const at::Tensor sum = stream_.to(output.device()).add(block_.to(output.device()));
  return sum.scalar_type() == found.scalar_type() && at::equal(sum, found);
}

void BirthRows::reset() {
  Site::reset();
  stream_ = block_ = own_ = at::Tensor();
}

at::Tensor BirthRows::apply(const at::Tensor& value) {
  if (!stream_.defined()) throw std::runtime_error(name() + ": the stream must be told before it fires");
  if (value.dim() != 3 || value.size(0) != source_.size(0)) {
    throw std::invalid_argument(name() + ": expected hidden states of (batch, rows, width)");
  }
  const auto device = value.device();
  const at::Tensor copies = gather_rows(value, source_);
  const at::Tensor written = stream_.to(device).add(own_.to(device)).to(value.scalar_type());
  const at::Tensor born = copies.reshape({-1, value.size(2)}).index_copy(0, written_.to(device), written);
  return at::cat({value, born.reshape(copies.sizes())}, 1);
}

}  // namespace moetrace::hooks
