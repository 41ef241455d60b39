#include "moetrace/weights/read_plan.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "moetrace/weights/file.h"

namespace moetrace::weights {

std::vector<Read> plan_reads(std::vector<Segment> segments, std::uint64_t most, std::uint64_t gap) {
  if (most == 0 || most % kBlock != 0)
    throw std::invalid_argument("a read's length must be a multiple of the block");
  std::sort(segments.begin(), segments.end(), [](const Segment& a, const Segment& b) {
    return std::tie(a.file, a.offset) < std::tie(b.file, b.offset);
  });

  std::vector<Read> reads;
  for (const Segment& segment : segments) {
    for (std::uint64_t done = 0; done < segment.bytes;) {
      const std::uint64_t at = segment.offset + done;
      const Read* last = reads.empty() ? nullptr : &reads.back();
      const bool goes_on = last != nullptr && last->file == segment.file && at >= last->offset &&
                           at < last->offset + most && at <= last->offset + last->bytes + gap;
      if (!goes_on) reads.push_back({segment.file, at / kBlock * kBlock, 0, {}});
      Read& read = reads.back();
      const std::uint64_t take = std::min(segment.bytes - done, read.offset + most - at);
      const std::uint64_t from = at - read.offset;
      read.copies.push_back({from, take, segment.destination + done});
      read.bytes = std::max(read.bytes, (from + take + kBlock - 1) / kBlock * kBlock);
      done += take;
    }
  }
  return reads;
}

}  // namespace moetrace::weights
