#pragma once

#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// Append rows behind a layer whose output is its residual stream plus its block's output.
///
/// A new row is a copy of a present row of the layer's output; a written one is the stream of the row it goes
/// on from plus a block output of its own. That is what the layer itself would have given, bit for bit, and
/// the layer never sees the row.
class BirthRows final : public Site {
 public:
  /// source: int64 (batch, born), rows of each case to copy; written: int64 (n), new rows of the whole batch
  /// (case * born + place); stream_row: int64 (n), rows of the whole value that they go on from.
  BirthRows(std::string name, at::Tensor source, at::Tensor written, at::Tensor stream_row);

  /// Before it fires. stream, block: whole values; own: (n, width), block outputs of the written rows.
  void tell(const at::Tensor& stream, const at::Tensor& block, at::Tensor own);

  /// Whether the layer's output is stream + block, bit for bit, in the rows that are gone on from.
  bool adds_up(const at::Tensor& output) const;
  void reset() override;

 private:
  at::Tensor apply(const at::Tensor& value) override;
  at::Tensor source_, written_, stream_row_;
  at::Tensor stream_, block_, own_;  // told: rows gone on from (n, width), and block outputs
};

}  // namespace moetrace::hooks
