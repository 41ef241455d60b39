#include "moetrace/hooks/layer_exit.h"

namespace moetrace::hooks {

namespace {

/// Whether two values are the same memory, read in the same way.
bool same_value(const Tensor& a, const Tensor& b) {
  return a.data_ptr() == b.data_ptr() && ops::shape_of(a) == ops::shape_of(b) &&
         a.scalar_type() == b.scalar_type();
}

}  // namespace

LayerExit::LayerExit(std::string name, Rows rows, const PatchedOutputs* experts)
    : Site(std::move(name)),
      cases_(rows.cases),
      inside_(rows.inside),
      sources_(std::move(rows.sources)),
      patched_(std::move(rows.patched)),
      stream_rows_(std::move(rows.stream)),
      block_rows_(std::move(rows.block)),
      experts_(experts) {
  if (patched_.size() != stream_rows_.size() || block_rows_.size() > patched_.size()) {
    throw std::invalid_argument(this->name() + ": a row to go on from is needed for each patched row");
  }
  const std::vector<std::int64_t>& stream = stream_rows_.rows();
  going_on_ =
      RowIndex({stream.begin() + static_cast<std::ptrdiff_t>(block_rows_.rows().size()), stream.end()});
}

void LayerExit::reset() {
  Site::reset();
  norms_.clear();
  stream_ = block_ = std::nullopt;
}

std::vector<Tensor> LayerExit::apply(Step step, const std::vector<Tensor>& given) {
  switch (step) {
    case Step::kNorm:
      norms_.emplace_back(given.at(0), given.at(1));
      return {};
    case Step::kBlockEntry:
      find_stream(given.at(0));
      return {};
    case Step::kBlockExit:
      if (block_) throw Failure(Trouble::kCannotJoin, "a block that is called repeatedly");
      as_rows(given.at(0), cases_ * inside_, name());  // the layer itself would fail with less to say
      block_ = given.at(0);
      return {};
    default:
      count();
      return {joined(given.at(0))};
  }
}

void LayerExit::find_stream(const Tensor& entered) {
  stream_.reset();
  for (const auto& [input, output] : norms_) {
    if (!stream_ && same_value(output, entered)) stream_ = input;
  }
  norms_.clear();
  if (!stream_)
    throw Failure(Trouble::kCannotJoin, "a block whose input isn't what a norm of the stream gave");
}

Tensor LayerExit::own_outputs() const {
  const Tensor flat = as_rows(*block_, cases_ * inside_, name());
  Tensor own = ops::index_select(flat, block_rows_.on(flat));
  if (experts_ == nullptr) return own;
  return ops::cat({own, of_experts(flat)}, 0);
}

Tensor LayerExit::of_experts(const Tensor& flat) const {
  const RowIndex& watched = experts_->watched_rows();
  const Tensor routed = ops::to_device(experts_->watched_output(), flat);
  if (ops::equal(routed, ops::index_select(flat, watched.on(flat)))) {
    return ops::to_device(experts_->patched(), flat);
  }
  if (!experts_->scale()) {
    throw Failure(Trouble::kCannotJoin, "a block that gives more than its experts' output");
  }
  const Tensor added = ops::to_device(experts_->added(), flat);
  const Tensor base = ops::to(ops::index_select(flat, going_on_.on(flat)), added.scalar_type());
  // base + scale * added: the stable ABI's subtraction takes a factor
  return ops::to(torch::stable::subtract(base, added, -*experts_->scale()), flat.scalar_type());
}

Tensor LayerExit::joined(const Tensor& output) {
  if (!stream_ || !block_) throw Failure(Trouble::kCannotJoin, "a layer whose block wasn't called");
  if (output.dim() > 3) throw Failure(Trouble::kCannotJoin, "hidden states of several streams");
  if (output.dim() != 3 || output.size(0) != cases_ || output.size(1) != inside_) {
    throw Failure(Trouble::kShape, name() + ": expected hidden states of (" + std::to_string(cases_) + ", " +
                                       std::to_string(inside_) + ", width), found " + shape_text(output));
  }
  const Tensor flat = as_rows(output, cases_ * inside_, name());
  const auto pick = [&](const Tensor& value) {
    const Tensor lines = as_rows(value, cases_ * inside_, name());
    return ops::to_device(ops::index_select(lines, stream_rows_.on(value)), output);
  };
  const Tensor stream = pick(*stream_);
  const Tensor sum = ops::add(stream, pick(*block_));
  const Tensor found = ops::index_select(flat, stream_rows_.on(output));
  if (sum.scalar_type() != found.scalar_type() || !ops::equal(sum, found)) {
    throw Failure(Trouble::kCannotJoin, "a layer that does more with its block's output than add it");
  }
  const Tensor patched =
      ops::to(ops::add(stream, ops::to_device(own_outputs(), output)), output.scalar_type());
  const Tensor copies = rows_of_cases(output, cases_, sources_);
  const Tensor lines = ops::reshape(copies, {copies.size(0) * copies.size(1), copies.size(2)});
  const Tensor lines_behind = ops::index_copy(lines, patched_.on(output), patched);
  const Tensor result = ops::cat({output, ops::reshape(lines_behind, ops::shape_of(copies))}, 1);
  stream_ = block_ = std::nullopt;  // not kept alive beyond the layer
  return result;
}

}  // namespace moetrace::hooks
