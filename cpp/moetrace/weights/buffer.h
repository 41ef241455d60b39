#pragma once

#include <cstddef>
#include <memory>

namespace moetrace::weights {

/// Memory that direct reads can fill: it begins at a page, and a huge one where it is long.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes);
  std::byte* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const noexcept;
  };
  std::size_t size_;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace moetrace::weights
