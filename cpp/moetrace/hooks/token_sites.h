#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moetrace/hooks/forward.h"
#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// Keeps what passes a place in a user's forwards, of the chosen tokens.
///
/// kValue: one tensor or several, each (batch, tokens, …) or (batch * tokens, …). Where every token is kept,
/// the model goes on with copies: what it does to them in place doesn't reach what is kept, and what is kept
/// is on the path to whatever is computed from them, for gradients. kKeep: the same of values that hold the
/// chosen tokens alone, (batch, chosen, …). kRead: of each tensor (batch, n, …), forwards of the same
/// sequences one behind the other; nothing where none has passed.
class Tap final : public Site {
 public:
  Tap(std::string name, std::shared_ptr<const Forward> forward);
  /// Chosen tokens of each forward that is kept.
  std::vector<std::int64_t> steps() const;
  void reset() override;

 private:
  std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) override;
  std::vector<Tensor> read() const;

  std::shared_ptr<const Forward> forward_;
  std::int64_t number_ = 0, sequence_ = 0;  ///< of the forward and the sequences that were seen last
  std::vector<std::vector<Tensor>> kept_;   ///< by forward
};

/// Replaces what passes a place in a user's forwards, at the chosen tokens.
///
/// kValue: [values…], gives what is there now of each, (batch, chosen, …); nothing where the forward holds
/// none of the tokens. kWrite: [values…, rows…], as many of each; gives the values with these rows.
class TokenPatch final : public Site {
 public:
  TokenPatch(std::string name, std::shared_ptr<const Forward> forward);

 private:
  std::vector<Tensor> apply(Step step, const std::vector<Tensor>& given) override;

  std::shared_ptr<const Forward> forward_;
};

}  // namespace moetrace::hooks
