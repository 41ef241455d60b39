#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "moetrace/hooks/rows.h"

namespace moetrace::hooks {

/// Which tokens of a user's forwards are meant. Tokens count from 0 over the whole sequence, padding and what
/// is in a cache included; a negative number counts from the end of the forward.
struct Tokens {
  enum class Kind {
    kAll,      ///< every token of every forward
    kColumns,  ///< `numbers` of every sequence
    kRows,     ///< `numbers` by sequence, as many of each
    kLast,     ///< of each sequence the last that isn't padding
  };
  Kind kind = Kind::kAll;
  std::vector<std::int64_t> numbers{};
  std::int64_t sequences = 0;  ///< of kRows
};

/// The forward of a user's own that is in progress: how its rows lie in a batch, and which of them are
/// chosen.
///
/// Everything that is armed in one scope shares one. A forward that goes on where the one before it ended, by
/// a cache, belongs to the same sequences; any other begins new ones.
class Forward {
 public:
  explicit Forward(Tokens tokens);

  /// A forward of (batch, tokens) starts behind `past` tokens in a cache. `last`: of each sequence the token
  /// of this forward that is its last one, where padding stands behind it; empty for the end of the forward.
  /// Throws std::out_of_range for a token before the first one, std::invalid_argument for tokens by sequence
  /// that this batch hasn't.
  void begin(std::int64_t batch, std::int64_t tokens, std::int64_t past,
             const std::vector<std::int64_t>& last);
  void end() noexcept { running_ = false; }

  /// Whether a forward is in progress in this thread.
  bool running() const noexcept { return running_ && thread_ == std::this_thread::get_id(); }
  /// Whether one is in progress in another thread.
  bool running_elsewhere() const noexcept { return running_ && thread_ != std::this_thread::get_id(); }
  std::int64_t number() const noexcept { return number_; }      ///< of the forward: 1 is the first
  std::int64_t sequence() const noexcept { return sequence_; }  ///< of the sequences: 1 are the first
  std::int64_t batch() const noexcept { return batch_; }
  std::int64_t tokens() const noexcept { return tokens_; }
  std::int64_t past() const noexcept { return past_; }
  bool all() const noexcept { return wanted_.kind == Tokens::Kind::kAll; }
  /// Chosen tokens of each sequence in this forward.
  std::int64_t chosen() const noexcept { return chosen_; }
  /// Chosen rows of the forward as (batch * tokens), sequence by sequence.
  const RowIndex& rows() const noexcept { return rows_; }
  /// The most tokens that a sequence has had.
  std::int64_t longest() const noexcept { return longest_; }
  /// Tokens that were asked for by a number from 0 on and that no forward held.
  std::vector<std::int64_t> unreached() const;

  /// (batch, tokens, …) of a value that is (batch, tokens, …) or (batch * tokens, …). Failure (kShape).
  Tensor by_token(const Tensor& value, const std::string& site) const;
  /// (batch, chosen, …).
  Tensor chosen_of(const Tensor& value, const std::string& site) const;
  /// The value with its chosen rows replaced by `rows` (batch, chosen, …).
  Tensor with_chosen(const Tensor& value, const Tensor& rows, const std::string& site) const;

 private:
  std::vector<std::int64_t> columns_of(std::int64_t sequence, const std::vector<std::int64_t>& last) const;
  void mark(std::int64_t sequence);

  Tokens wanted_;
  bool running_ = false;
  std::thread::id thread_;
  std::int64_t number_ = 0, sequence_ = 0, batch_ = 0, tokens_ = 0, past_ = 0, chosen_ = 0, longest_ = 0;
  RowIndex rows_;
  std::vector<bool> reached_;  ///< by number that was asked for
};

}  // namespace moetrace::hooks
