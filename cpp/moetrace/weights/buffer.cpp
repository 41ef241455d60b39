#include "moetrace/weights/buffer.h"

#include <algorithm>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace moetrace::weights {

namespace {

constexpr std::align_val_t kAlignment{std::size_t{2} << 20};

}  // namespace

Buffer::Buffer(std::size_t bytes)
    : size_(std::max<std::size_t>(bytes, 1)),
      data_(static_cast<std::byte*>(::operator new(size_, kAlignment))) {
#ifdef MADV_HUGEPAGE
  madvise(data_.get(), size_, MADV_HUGEPAGE);  // fewer faults; where it isn't allowed, small pages do too
#endif
}

void Buffer::Free::operator()(std::byte* data) const noexcept { ::operator delete(data, kAlignment); }

}  // namespace moetrace::weights
