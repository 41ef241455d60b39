#include "moetrace/hooks/forward.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "moetrace/hooks/failure.h"

namespace moetrace::hooks {

Forward::Forward(Tokens tokens) : wanted_(std::move(tokens)), reached_(wanted_.numbers.size(), false) {
  if (wanted_.kind == Tokens::Kind::kRows &&
      (wanted_.sequences < 1 || static_cast<std::int64_t>(wanted_.numbers.size()) % wanted_.sequences != 0)) {
    throw std::invalid_argument("tokens by sequence: as many of each are needed");
  }
}

void Forward::begin(std::int64_t batch, std::int64_t tokens, std::int64_t past,
                    const std::vector<std::int64_t>& last) {
  running_ = false;  // until everything is known to be right
  if (wanted_.kind == Tokens::Kind::kRows && wanted_.sequences != batch) {
    throw std::invalid_argument("tokens are given for " + std::to_string(wanted_.sequences) +
                                " sequences; the forward has " + std::to_string(batch));
  }
  const bool goes_on = past > 0 && past == past_ + tokens_ && batch == batch_;
  batch_ = batch;
  tokens_ = tokens;
  past_ = past;
  ++number_;
  if (!goes_on) ++sequence_;
  longest_ = std::max(longest_, past + tokens);

  std::vector<std::int64_t> rows;
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    const auto columns = columns_of(sequence, last);
    const auto count = static_cast<std::int64_t>(columns.size());
    if (sequence > 0 && count != chosen_) {
      throw std::invalid_argument("the forward holds " + std::to_string(chosen_) +
                                  " of the tokens of sequence 0 and " + std::to_string(count) +
                                  " of those of sequence " + std::to_string(sequence) +
                                  "; expected as many of each");
    }
    chosen_ = count;
    for (const std::int64_t column : columns) rows.push_back(sequence * tokens + column);
    mark(sequence);
  }
  rows_ = RowIndex(std::move(rows));
  thread_ = std::this_thread::get_id();
  running_ = true;
}

std::vector<std::int64_t> Forward::columns_of(std::int64_t sequence,
                                              const std::vector<std::int64_t>& last) const {
  std::vector<std::int64_t> found;
  if (all()) {
    for (std::int64_t column = 0; column < tokens_; ++column) found.push_back(column);
    return found;
  }
  if (wanted_.kind == Tokens::Kind::kLast) {
    const std::int64_t own = last.empty() ? tokens_ - 1 : last.at(static_cast<std::size_t>(sequence));
    if (own >= 0) found.push_back(own);
    return found;
  }
  const bool each = wanted_.kind == Tokens::Kind::kRows;
  const std::size_t count =
      each ? wanted_.numbers.size() / static_cast<std::size_t>(wanted_.sequences) : wanted_.numbers.size();
  const std::size_t first = each ? static_cast<std::size_t>(sequence) * count : 0;
  for (std::size_t at = first; at < first + count; ++at) {
    const std::int64_t number = wanted_.numbers[at];
    const std::int64_t column = number < 0 ? tokens_ + number : number - past_;
    if (column + past_ < 0) {
      throw std::out_of_range("token " + std::to_string(number) + " lies before the first token of " +
                              std::to_string(past_ + tokens_));
    }
    if (column < 0 || column >= tokens_) continue;  // of an earlier forward or of a later one
    if (std::find(found.begin(), found.end(), column) != found.end()) {
      throw std::invalid_argument("token " + std::to_string(past_ + column) + " is asked for twice");
    }
    found.push_back(column);
  }
  return found;
}

void Forward::mark(std::int64_t sequence) {
  const bool each = wanted_.kind == Tokens::Kind::kRows;
  const std::size_t count =
      each ? wanted_.numbers.size() / static_cast<std::size_t>(wanted_.sequences) : wanted_.numbers.size();
  const std::size_t first = each ? static_cast<std::size_t>(sequence) * count : 0;
  for (std::size_t at = first; at < first + count; ++at) {
    const std::int64_t number = wanted_.numbers[at];
    if (number < 0 || (number >= past_ && number < past_ + tokens_)) reached_[at] = true;
  }
}

std::vector<std::int64_t> Forward::unreached() const {
  std::vector<std::int64_t> found;
  for (std::size_t at = 0; at < reached_.size(); ++at) {
    if (!reached_[at] && wanted_.numbers[at] >= 0) found.push_back(wanted_.numbers[at]);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

Tensor Forward::by_token(const Tensor& value, const std::string& site) const {
  std::vector<std::int64_t> shape = ops::shape_of(value);
  if (shape.size() >= 3 && shape[0] == batch_ && shape[1] == tokens_) return value;
  if (shape.size() >= 2 && shape[0] == batch_ * tokens_) {
    shape[0] = tokens_;
    shape.insert(shape.begin(), batch_);
    return ops::reshape(value, shape);
  }
  throw Failure(Trouble::kShape,
                site + ": expected a value for each of " + std::to_string(batch_) + " x " +
                    std::to_string(tokens_) + " tokens, found a tensor of shape " + shape_text(value) +
                    "; a model that leaves out tokens whose logits aren't asked for (Gemma 4, "
                    "in generate) computes all of them with output_hidden_states=True");
}

Tensor Forward::chosen_of(const Tensor& value, const std::string& site) const {
  Tensor lines = by_token(value, site);
  if (all()) return lines;
  std::vector<std::int64_t> shape = ops::shape_of(lines);
  shape[1] = chosen_;
  std::vector<std::int64_t> flat(shape.begin() + 1, shape.end());
  flat[0] = batch_ * tokens_;
  return ops::reshape(ops::index_select(ops::reshape(lines, flat), rows_.on(value)), shape);
}

Tensor Forward::with_chosen(const Tensor& value, const Tensor& rows, const std::string& site) const {
  const Tensor lines = by_token(value, site);
  std::vector<std::int64_t> shape = ops::shape_of(lines);
  shape[1] = chosen_;
  if (ops::shape_of(rows) != shape) {
    throw Failure(Trouble::kShape,
                  site + ": expected rows of as many tokens as are chosen, found a tensor of shape " +
                      shape_text(rows));
  }
  if (all()) return ops::reshape(rows, ops::shape_of(value));
  std::vector<std::int64_t> flat(shape.begin() + 1, shape.end());
  flat[0] = batch_ * tokens_;
  const Tensor whole = ops::reshape(lines, flat);
  flat[0] = batch_ * chosen_;
  return ops::reshape(ops::index_copy(whole, rows_.on(value), ops::reshape(rows, flat)),
                      ops::shape_of(value));
}

}  // namespace moetrace::hooks
