#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrace/tree/plan.h"

namespace moetrace::tree {

/// Where forks join the pass; the first is the fastest, the last serves every model.
enum class Join {
  kAfterLayer,   ///< behind the layer in which they are patched
  kBeforeLayer,  ///< before it
  kStart,        ///< before the first layer
};

/// A plan and where its forks join: how many rows of each case are there at which layer.
///
/// Rows that are there are a prefix of all rows. In flat numbers a value of n rows a case has row r of case c
/// at c * n + r.
class Layout {
 public:
  Layout(const std::vector<CaseShape>& cases, const std::vector<Fork>& forks, std::int64_t branches,
         std::int64_t layers, Join join);

  const Plan& plan() const noexcept { return plan_; }
  Join join() const noexcept { return join_; }
  std::int64_t cases() const noexcept { return plan_.cases; }
  std::int64_t layers() const noexcept { return static_cast<std::int64_t>(plan_.rows_at_layer.size()); }

  /// Rows of each case in the model's input.
  std::int64_t start_rows() const noexcept;
  /// Rows of each case while a layer runs.
  std::int64_t rows_inside(std::int64_t layer) const;
  /// Rows of each case that leave a layer.
  std::int64_t rows_behind(std::int64_t layer) const;
  /// Rows of each case that reach a layer, before forks join there.
  std::int64_t rows_before(std::int64_t layer) const;

  /// Base rows that rows begin to end of each case are copies of, case by case.
  std::vector<std::int64_t> sources(std::int64_t begin, std::int64_t end) const;
  /// Where a fork patches a case: the tokens of its place; nowhere where the case doesn't have it.
  std::span<const std::int64_t> positions(std::int64_t index, std::int64_t fork) const;
  /// Of each case the forks that its first `end` rows belong to, case by case; -1 for base rows and padding.
  std::vector<std::int64_t> forks(std::int64_t end) const;
  /// The row of a fork that stands at a position of a case, at or behind the first that is patched.
  std::int64_t row_of(std::int64_t index, std::int64_t fork, std::int64_t position) const;
  /// The row of the clean (-1) or a noised run (0, 1, …) that stands at a position of a case.
  std::int64_t base_row(std::int64_t index, std::int64_t branch, std::int64_t position) const;
  /// The rows at the position of a fork's row: of the run that it leaves from, of the clean run and of the
  /// noised run of its draw.
  std::int64_t origin(std::int64_t index, std::int64_t row) const;
  std::int64_t clean_twin(std::int64_t index, std::int64_t row) const;
  std::int64_t noised_twin(std::int64_t index, std::int64_t row) const;

 private:
  Plan plan_;
  Join join_;
  std::vector<CaseShape> shapes_;
  std::vector<Fork> forks_;
};

}  // namespace moetrace::tree
