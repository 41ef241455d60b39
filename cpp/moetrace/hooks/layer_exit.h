#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "moetrace/hooks/rows.h"
#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// Where the block outputs of patched experts come from, see experts::ExpertsCall.
class PatchedOutputs {
 public:
  virtual ~PatchedOutputs() = default;
  /// Rows of the whole value whose output the experts gave, and that output: (n, width).
  virtual const RowIndex& watched_rows() const = 0;
  virtual const Tensor& watched_output() const = 0;
  /// Outputs of the patched rows: (forks, width).
  virtual const Tensor& patched() const = 0;
  /// What they have more than the row that they go on from: (forks, width), in single precision at least.
  virtual const Tensor& added() const = 0;
  /// What the block multiplies its experts' output by; none where nobody measured it.
  virtual std::optional<double> scale() const = 0;
};

/// Append rows behind a layer whose output is its residual stream plus its block's output.
///
/// A new row is a copy of a present row of the layer's output; a patched one is the stream of the row it goes
/// on from plus a block output of its own. That is what the layer itself would have given, bit for bit, and
/// the layer never sees the row. The stream is what a module directly in the layer (a norm) was given before
/// it gave the block its input. A layer that does more is a Failure (kCannotJoin).
///
/// Where a block does more with its experts' output than return it (shared experts beside it, a factor), a
/// patched expert's block output is that of the row it goes on from plus what the patch adds, times the
/// measured factor: what the block adds beside its experts is the same in both.
class LayerExit final : public Site {
 public:
  struct Rows {
    std::int64_t cases = 0;
    std::int64_t inside = 0;            ///< rows a case inside the layer
    std::vector<std::int64_t> sources;  ///< of each case the rows to copy, case by case
    std::vector<std::int64_t> patched;  ///< patched rows among the new ones of the whole batch
    std::vector<std::int64_t> stream;   ///< rows of the whole value that they go on from
    std::vector<std::int64_t> block;    ///< rows of the block's output that the first of them get
  };
  /// `experts`: gives the block outputs of the patched rows that `rows.block` has no row for; may be null.
  LayerExit(std::string name, Rows rows, const PatchedOutputs* experts);
  void reset() override;

 private:
  std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) override;
  void find_stream(const Tensor& entered);
  Tensor own_outputs() const;
  Tensor of_experts(const Tensor& flat) const;
  Tensor joined(const Tensor& output);

  std::int64_t cases_, inside_;
  std::vector<std::int64_t> sources_;
  RowIndex patched_, stream_rows_, block_rows_;
  RowIndex going_on_;  ///< those of stream_rows_ that patched experts go on from
  const PatchedOutputs* experts_;
  std::vector<std::pair<Tensor, Tensor>> norms_;  ///< input and output of modules beside the block
  std::optional<Tensor> stream_, block_;
};

}  // namespace moetrace::hooks
