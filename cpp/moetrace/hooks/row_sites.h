#pragma once

#include <vector>

#include "moetrace/hooks/rows.h"
#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// Replace rows by other rows of the same value: a clean block output written into a fork, the patch whose
/// effect equation 4 measures.
class OverwriteRows final : public Site {
 public:
  /// `rows`: rows of the whole value; `destination`, `source`: as many of them each.
  OverwriteRows(std::string name, std::int64_t rows, std::vector<std::int64_t> destination,
                std::vector<std::int64_t> source);

 private:
  std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) override;
  std::int64_t rows_;
  RowIndex destination_, source_;
};

/// What becomes of rows that are given vectors.
enum class RowChange {
  kAdded,    ///< added in float32, then cast back: subject noise on the embedding's output (equation 2)
  kReplaced  ///< written in their place: the embedding of another token
};

/// Change rows by vectors that come with the case: subject noise on the embedding's output (equation 2), or
/// the embeddings of other tokens.
class ChangeRows final : public Site {
 public:
  /// `vectors`: row-major (destination, width).
  ChangeRows(std::string name, std::int64_t rows, std::vector<std::int64_t> destination,
             std::vector<float> vectors, RowChange change);

 private:
  std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) override;
  std::int64_t rows_;
  RowIndex destination_;
  std::vector<float> vectors_;
  RowChange change_;
};

}  // namespace moetrace::hooks
