#pragma once

#include <memory>
#include <vector>

#include "moetrace/hooks/site.h"

namespace moetrace::hooks {

/// The armed sites of one forward pass, and the check that each of them fired exactly once.
class HookTable {
 public:
  void add(std::shared_ptr<Site> site);
  std::size_t size() const noexcept { return sites_.size(); }

  /// Forget what fired: the pass is run again.
  void reset();

  /// Throws std::runtime_error that names the sites which never fired, or fired more than once.
  void check_fired() const;

 private:
  std::vector<std::shared_ptr<Site>> sites_;
};

}  // namespace moetrace::hooks
