#pragma once

#include <vector>

#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// Replace rows by other rows of the same value: a clean block output written into a fork.
class OverwriteRows final : public Site {
 public:
  /// `rows`: rows of the whole value; `destination`, `source`: int64 (n), into them.
  OverwriteRows(std::string name, std::int64_t rows, at::Tensor destination, at::Tensor source);

 private:
  at::Tensor apply(const at::Tensor& value) override;
  std::int64_t rows_;
  at::Tensor destination_, source_;
};

/// Add vectors to rows: subject noise on the embedding's output. Added in float32, then cast back.
class AddRows final : public Site {
 public:
  /// `destination`: int64 (n); `addend`: float32 (n, width).
  AddRows(std::string name, std::int64_t rows, at::Tensor destination, at::Tensor addend);

 private:
  at::Tensor apply(const at::Tensor& value) override;
  std::int64_t rows_;
  at::Tensor destination_, addend_;
};

/// Append rows that start as copies of present ones: forks that are born where the value enters a layer.
class GrowRows final : public Site {
 public:
  /// `source`: int64 (batch, born), rows of each case to copy.
  GrowRows(std::string name, at::Tensor source);

 private:
  at::Tensor apply(const at::Tensor& value) override;
  at::Tensor source_;
};

/// Rows `source` (batch, n) of each case of `value` (batch, rows, …): (batch, n, …).
at::Tensor gather_rows(const at::Tensor& value, const at::Tensor& source);

}  // namespace moetrace::hooks
