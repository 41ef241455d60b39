#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moetrace/hooks/tensor.h"

namespace moetrace::hooks {

/// Numbers of rows of a value. Their tensor is made once and kept on the device where it was last needed.
class RowIndex {
 public:
  RowIndex() = default;
  explicit RowIndex(std::vector<std::int64_t> rows) : rows_(std::move(rows)) {}

  const std::vector<std::int64_t>& rows() const noexcept { return rows_; }
  std::int64_t size() const noexcept { return static_cast<std::int64_t>(rows_.size()); }
  bool empty() const noexcept { return rows_.empty(); }
  /// int64 (n), on the device of `like`.
  const Tensor& on(const Tensor& like) const;

 private:
  std::vector<std::int64_t> rows_;
  mutable std::optional<Tensor> tensor_;
};

/// `value` as rows x width: hooks see (batch, rows, width) or (batch * rows, width) alike.
/// Throws a Failure that names the site, unless there are exactly `rows` rows.
Tensor as_rows(const Tensor& value, std::int64_t rows, const std::string& site);

/// (batch, n, …) from `value` (batch or 1, rows, …): of each case the rows that `source` (batch x n) names.
Tensor rows_of_cases(const Tensor& value, std::int64_t cases, const std::vector<std::int64_t>& source);

/// "(2, 5, 3)", for messages.
std::string shape_text(const Tensor& value);

}  // namespace moetrace::hooks
