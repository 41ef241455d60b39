#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moetrace/hooks/failure.h"
#include "moetrace/hooks/tensor.h"

namespace moetrace::hooks {

/// The moment in a module's call at which a site is fired.
enum class Step : std::int64_t {
  kValue,       ///< a value passes: given [value]
  kMask,        ///< an attention mask enters a layer: [mask]
  kPerRow,      ///< something with a line for each row enters a layer: [lines]
  kHeads,       ///< the same with the rows behind an axis of heads: [(cases, heads, rows, …)]
  kChosen,      ///< numbers of the rows that each row sees enter a layer: [(cases, rows, k)]
  kNorm,        ///< a module beside the block returns: [input, output]
  kBlockEntry,  ///< the block is called: [hidden states]
  kBlockExit,   ///< the block returns: [output]
  kEnter,       ///< experts are called
  kPairs,       ///< what the module must compute for contributions
  kLeave,       ///< experts return
  kRead,        ///< what was kept is asked for
  kWrite,       ///< what a value is replaced by: [values, rows]
  kKeep,        ///< rows of chosen tokens alone are to be kept: [rows]
};

/// One armed place in a model: it sees values there, may replace them, and counts how often it fired.
///
/// Python's hooks reach a site by its number, which is its own for as long as it lives.
class Site {
 public:
  explicit Site(std::string name);
  virtual ~Site();
  Site(const Site&) = delete;
  Site& operator=(const Site&) = delete;

  /// What the model shall go on with in place of `given`; nothing where it stays as it is. What is given is
  /// never written to.
  std::vector<Tensor> fire(Step step, const std::vector<Tensor>& given);

  std::int64_t number() const noexcept { return number_; }
  const std::string& name() const noexcept { return name_; }
  std::int64_t fired() const noexcept { return fired_; }
  /// What went wrong at the last firing, and at which step.
  const std::optional<Failure>& failure() const noexcept { return failure_; }
  Step failed_step() const noexcept { return failed_step_; }
  /// Keep a failure that Python's side of the hook found, and throw it.
  [[noreturn]] void refuse(const Failure& failure, Step step = Step::kValue);
  /// Forget what was seen: the pass is run again.
  virtual void reset() { fired_ = 0; }

  /// The site of a number. Throws std::out_of_range where none has it.
  static Site& of(std::int64_t number);

 protected:
  virtual std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) = 0;
  void count() noexcept { ++fired_; }

 private:
  std::string name_;
  std::int64_t number_ = 0;
  std::int64_t fired_ = 0;
  std::optional<Failure> failure_;
  Step failed_step_ = Step::kValue;
};

}  // namespace moetrace::hooks
