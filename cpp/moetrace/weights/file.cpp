#include "moetrace/weights/file.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

namespace moetrace::weights {

namespace {

std::string reason(int error) { return std::generic_category().message(error); }

#ifdef _WIN32

constexpr int kPlain = _O_RDONLY | _O_BINARY;
constexpr int kDirect = kPlain;
constexpr std::uint64_t kMost = std::uint64_t{1} << 30;

std::int64_t read_at(int handle, std::byte* into, std::uint64_t bytes, std::uint64_t offset) {
  if (_lseeki64(handle, static_cast<std::int64_t>(offset), SEEK_SET) < 0) return -1;
  return _read(handle, into, static_cast<unsigned>(std::min(bytes, kMost)));
}

void close_file(int handle) { _close(handle); }

#else

constexpr int kPlain = O_RDONLY | O_CLOEXEC;
#ifdef O_DIRECT
constexpr int kDirect = kPlain | O_DIRECT;
#else
constexpr int kDirect = kPlain;
#endif

std::int64_t read_at(int handle, std::byte* into, std::uint64_t bytes, std::uint64_t offset) {
  return ::pread(handle, into, bytes, static_cast<off_t>(offset));
}

void close_file(int handle) { ::close(handle); }

#endif

}  // namespace

File::File(const std::string& path, bool direct) : path_(path) { open(direct); }

File::~File() {
  if (handle_ >= 0) close_file(handle_);
}

void File::open(bool direct) {
  if (handle_ >= 0) close_file(handle_);
  direct_ = direct && kDirect != kPlain;
  handle_ = ::open(path_.c_str(), direct_ ? kDirect : kPlain);
  if (handle_ < 0 && direct_ && errno == EINVAL) {  // a file system without direct reads
    direct_ = false;
    handle_ = ::open(path_.c_str(), kPlain);
  }
  if (handle_ < 0) throw ReadError(path_, "it can't be opened: " + reason(errno));
#if defined(F_NOCACHE)
  if (direct) fcntl(handle_, F_NOCACHE, 1);
#elif defined(POSIX_FADV_SEQUENTIAL)
  if (!direct_) posix_fadvise(handle_, 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
}

std::uint64_t File::read(std::uint64_t offset, std::uint64_t bytes, std::byte* into) {
  std::uint64_t got = 0;
  while (got < bytes) {
    const std::int64_t now = read_at(handle_, into + got, bytes - got, offset + got);
    if (now == 0) break;
    if (now < 0) {
      if (errno == EINTR) continue;
      if (errno == EINVAL && direct_) {  // opened, but not readable so: some network file systems
        open(false);
        continue;
      }
      throw ReadError(path_, reason(errno) + " (reading at byte " + std::to_string(offset + got) + ")");
    }
    got += static_cast<std::uint64_t>(now);
    // A direct read that stops inside a block has met the end of the file; reading on from there isn't
    // allowed.
    if (direct_ && got % kBlock != 0) break;
  }
  return got;
}

}  // namespace moetrace::weights
