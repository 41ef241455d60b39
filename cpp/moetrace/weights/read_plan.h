#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moetrace::weights {

/// Bytes of a file and where they belong in a layer's buffer.
struct Segment {
  std::size_t file;
  std::uint64_t offset;
  std::uint64_t bytes;
  std::uint64_t destination;
};

/// Part of what was read and where it goes.
struct Copy {
  std::uint64_t from;  ///< from the beginning of the read
  std::uint64_t bytes;
  std::uint64_t destination;
};

/// One read of a file, from one multiple of kBlock to another: it may end beyond the file.
struct Read {
  std::size_t file;
  std::uint64_t offset;
  std::uint64_t bytes;
  std::vector<Copy> copies;
};

/// The segments as reads of `most` bytes at most, in the order of the files. Segments that lie closer
/// together than `gap` bytes are read in one go.
std::vector<Read> plan_reads(std::vector<Segment> segments, std::uint64_t most, std::uint64_t gap);

}  // namespace moetrace::weights
