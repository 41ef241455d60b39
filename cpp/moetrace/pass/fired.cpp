#include "moetrace/pass/pass.h"

// Whether every site of a pass did its work, and what is said where one didn't.

#include <string>

namespace moetrace::pass {

std::optional<hooks::Failure> Pass::failure() const {
  const Hook* hook = failed();
  return hook == nullptr ? std::nullopt : hook->site->failure();
}

const Hook* Pass::failed() const noexcept {
  // A site's last hook is where it does its work; of those before it only what watches a block can fail.
  const Hook* found = nullptr;
  for (const Hook& hook : hooks_) {
    if (!hook.site || !hook.site->failure()) continue;
    found = &hook;
    if (hook.place == Place::kBlockExit && hook.site->failed_step() == hooks::Step::kBlockExit) break;
  }
  return found;
}

std::vector<Hook> Pass::misfires() const {
  std::vector<Hook> found;
  for (const Hook& hook : must_fire_) {
    if (hook.site->fired() != 1) found.push_back(hook);
  }
  return found;
}

std::string Pass::misfired() const {
  std::string silent, repeated;
  for (const Hook& hook : misfires()) {
    const hooks::Site& site = *hook.site;
    if (site.fired() == 0) {
      silent += (silent.empty() ? "" : ", ") + site.name();
    } else {
      repeated +=
          (repeated.empty() ? "" : ", ") + site.name() + " (" + std::to_string(site.fired()) + " times)";
    }
  }
  std::string text;
  if (!silent.empty()) text += " never fired: " + silent + ";";
  if (!repeated.empty()) text += " fired repeatedly: " + repeated + ";";
  return text.empty() ? text : "hooks must fire once in a forward pass;" + text;
}

}  // namespace moetrace::pass
