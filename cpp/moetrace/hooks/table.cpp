#include "moetrace/hooks/table.h"

#include <stdexcept>
#include <utility>

namespace moetrace::hooks {

void HookTable::add(std::shared_ptr<Site> site) {
  if (!site) throw std::invalid_argument("a hook table takes sites, not null");
  sites_.push_back(std::move(site));
}

void HookTable::reset() {
  for (const auto& site : sites_) site->reset();
}

void HookTable::check_fired() const {
  std::string silent, repeated;
  for (const auto& site : sites_) {
    if (site->fired() == 0) silent += (silent.empty() ? "" : ", ") + site->name();
    if (site->fired() > 1) {
      repeated +=
          (repeated.empty() ? "" : ", ") + site->name() + " (" + std::to_string(site->fired()) + " times)";
    }
  }
  if (silent.empty() && repeated.empty()) return;
  std::string message = "hooks must fire once in a forward pass;";
  if (!silent.empty()) message += " never fired: " + silent + ";";
  if (!repeated.empty()) message += " fired repeatedly: " + repeated + ";";
  throw std::runtime_error(message);
}

}  // namespace moetrace::hooks
