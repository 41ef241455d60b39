#pragma once

#include <stdexcept>
#include <string>

namespace moetrace::hooks {

/// What can go wrong at a site, and what the engine then does.
enum class Trouble {
  kCannotJoin,    ///< forks can't join in the way that was tried: the next way is tried
  kNotFused,      ///< the fused routine doesn't give what the module gives: run again without it
  kContribution,  ///< contributions don't sum to the experts' output: the trace stops
  kShape,         ///< the model hands over another shape than was planned: the trace stops
};

class Failure : public std::runtime_error {
 public:
  Failure(Trouble trouble, const std::string& message) : std::runtime_error(message), trouble_(trouble) {}
  Trouble trouble() const noexcept { return trouble_; }

 private:
  Trouble trouble_;
};

}  // namespace moetrace::hooks
