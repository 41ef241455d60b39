#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

/// A file of `bytes` bytes for the time of a test; byte i is `byte_at(seed, i)`.
class TemporaryFile {
 public:
  TemporaryFile(std::uint64_t bytes, std::uint64_t seed) {
    static int count = 0;
    path_ =
        (std::filesystem::temp_directory_path() / ("moetrace_weights_" + std::to_string(++count) + "_" +
                                                   std::to_string(reinterpret_cast<std::uintptr_t>(this))))
            .string();
    std::vector<char> content(bytes);
    for (std::uint64_t i = 0; i < bytes; ++i) content[i] = static_cast<char>(byte_at(seed, i));
    std::ofstream(path_, std::ios::binary).write(content.data(), static_cast<std::streamsize>(bytes));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }

  static std::byte byte_at(std::uint64_t seed, std::uint64_t i) {
    std::uint64_t mixed = (i + 1) * 0x9E3779B97F4A7C15ULL + seed * 0xBF58476D1CE4E5B9ULL;
    mixed ^= mixed >> 29;
    return static_cast<std::byte>(mixed * 0x94D049BB133111EBULL >> 56);
  }
  void cut(std::uint64_t bytes) const { std::filesystem::resize_file(path_, bytes); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};
