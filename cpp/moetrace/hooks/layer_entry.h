#pragma once

#include <vector>

#include "moetrace/hooks/rows.h"
#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// What enters a layer in a pass whose forks join as it goes.
///
/// Hidden states get the rows that join before the layer, as copies of present ones; masks and whatever else
/// has a line for each row are brought to the rows that are there. What can't be is a Failure (kCannotJoin).
/// What an earlier layer gave for fewer rows, keys and values or the keys that its rows chose, is completed:
/// up to the layer at which a fork joins it is what the row gave that the fork's row is a copy of.
class LayerEntry final : public Site {
 public:
  /// `start_rows`: rows a case in the model's input; `joining`: of each case the rows to copy, case by case;
  /// `every`: of each case the rows in the input that all its rows inside the layer have their lines from;
  /// `forks`: of the same rows the fork that each belongs to, -1 for none; empty where there is none.
  LayerEntry(std::string name, std::int64_t cases, std::int64_t start_rows, std::vector<std::int64_t> joining,
             std::vector<std::int64_t> every, std::vector<std::int64_t> forks = {});

  /// Whether forks join here, so that the site must fire.
  bool joins() const noexcept { return !joining_.empty(); }

 private:
  std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) override;
  Tensor grown(const Tensor& hidden) const;
  Tensor mask(const Tensor& value) const;
  Tensor lines(const Tensor& value) const;
  Tensor behind_heads(const Tensor& value) const;
  Tensor chosen(const Tensor& value) const;
  Tensor completed(const Tensor& value) const;
  std::int64_t in_fork(std::size_t row, std::int64_t base) const;
  std::int64_t rows() const noexcept { return static_cast<std::int64_t>(every_.size()) / cases_; }

  std::int64_t cases_, start_rows_;
  std::vector<std::int64_t> joining_, every_, forks_;
};

}  // namespace moetrace::hooks
