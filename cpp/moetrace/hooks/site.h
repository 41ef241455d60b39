#pragma once

#include <cstdint>
#include <string>

#include "moetrace/hooks/aten.h"

namespace moetrace::hooks {

/// One armed place in a model: it sees a value there, may replace it, and counts how often it fired.
class Site {
 public:
  explicit Site(std::string name) : name_(std::move(name)) {}
  virtual ~Site() = default;
  Site(const Site&) = delete;
  Site& operator=(const Site&) = delete;

  /// What the model shall go on with in place of `value`. The value itself is never written to.
  at::Tensor fire(const at::Tensor& value);

  const std::string& name() const noexcept { return name_; }
  std::int64_t fired() const noexcept { return fired_; }
  virtual void reset() { fired_ = 0; }

 protected:
  virtual at::Tensor apply(const at::Tensor& value) = 0;

 private:
  std::string name_;
  std::int64_t fired_ = 0;
};

/// `value` as rows x width: hooks see (batch, rows, width) or (batch * rows, width) alike.
/// Throws std::invalid_argument, naming the site, unless there are exactly `rows` rows.
at::Tensor as_rows(const at::Tensor& value, std::int64_t rows, const std::string& site);

}  // namespace moetrace::hooks
