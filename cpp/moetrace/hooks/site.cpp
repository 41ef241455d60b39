#include "moetrace/hooks/site.h"

#include <mutex>
#include <unordered_map>
#include <utility>

namespace moetrace::hooks {

namespace {

/// Every living site by its number. Several threads may trace different models at once.
struct Table {
  std::mutex mutex;
  std::unordered_map<std::int64_t, Site*> sites;
  std::int64_t next = 0;
};

Table& table() {
  static Table found;
  return found;
}

}  // namespace

Site::Site(std::string name) : name_(std::move(name)) {
  const std::lock_guard lock(table().mutex);
  number_ = table().next++;
  table().sites.emplace(number_, this);
}

Site::~Site() {
  const std::lock_guard lock(table().mutex);
  table().sites.erase(number_);
}

Site& Site::of(std::int64_t number) {
  const std::lock_guard lock(table().mutex);
  const auto found = table().sites.find(number);
  if (found == table().sites.end()) {
    throw std::out_of_range("no site has the number " + std::to_string(number) + "; its pass is over");
  }
  return *found->second;
}

void Site::refuse(const Failure& failure, Step step) {
  failure_ = failure;
  failed_step_ = step;
  throw failure;
}

std::vector<Tensor> Site::fire(Step step, const std::vector<Tensor>& given) {
  try {
    return apply(step, given);
  } catch (const Failure& failure) {
    failure_ = failure;  // LibTorch passes on the message alone
    failed_step_ = step;
    throw;
  }
}

}  // namespace moetrace::hooks
