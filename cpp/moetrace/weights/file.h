#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace moetrace::weights {

/// Direct reads start and end at multiples of it, in the file and in memory.
constexpr std::uint64_t kBlock = 4096;

/// A file that can't be opened or read, or ends too early; the message names it and the place.
class ReadError : public std::runtime_error {
 public:
  ReadError(const std::string& path, const std::string& what)
      : std::runtime_error(path + ": " + what), path_(path) {}
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

/// A file opened for reading past the system's page cache where the file system allows it, else through it.
class File {
 public:
  /// `direct`: whether to try reads past the page cache. ReadError.
  File(const std::string& path, bool direct);
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  /// Reads until `bytes` are there or the file ends; how many are there. Offset, bytes and memory are
  /// multiples of kBlock. ReadError.
  std::uint64_t read(std::uint64_t offset, std::uint64_t bytes, std::byte* into);

  const std::string& path() const noexcept { return path_; }

 private:
  void open(bool direct);

  std::string path_;
  bool direct_ = false;
  int handle_ = -1;
};

}  // namespace moetrace::weights
