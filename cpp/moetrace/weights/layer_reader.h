#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "moetrace/stats/parallel.h"
#include "moetrace/weights/buffer.h"
#include "moetrace/weights/file.h"
#include "moetrace/weights/read_plan.h"

namespace moetrace::weights {

/// How a checkpoint is read.
struct ReadOptions {
  std::uint64_t bytes = std::uint64_t{8} << 20;  ///< of one read, a multiple of kBlock
  std::uint64_t gap = std::uint64_t{128} << 10;  ///< bytes that are read over sooner than skipped
  bool direct = true;                            ///< past the page cache, where the file system allows it
};

/// Layers of a checkpoint in two buffers: while one layer is used, a thread reads another.
///
/// A layer is read when it is prefetched, or acquired without; a thread lives as long as its layer is being
/// read. What acquire has returned stays as it is until as many releases. Calls may come from any thread.
class LayerReader {
 public:
  using Segments = std::vector<Segment>;

  /// `layers`: for each layer what is read of which of the `files`, and to where in its buffer.
  LayerReader(std::vector<std::string> files, const std::vector<Segments>& layers, ReadOptions options = {});
  LayerReader(const LayerReader&) = delete;
  LayerReader& operator=(const LayerReader&) = delete;
  ~LayerReader();

  /// Start reading a layer if it isn't there and a buffer is free; does nothing otherwise.
  void prefetch(std::size_t layer);

  /// The layer's bytes, read now if they weren't. ReadError where that fails, std::logic_error where both
  /// buffers hold other layers in use, Interrupted where the caller asks to stop while it waits.
  std::shared_ptr<Buffer> acquire(std::size_t layer, const stats::Interrupt& interrupt = {});

  /// The layer's buffer may be filled with another one, once it was released as often as it was acquired.
  void release(std::size_t layer);

  /// No thread is left, files are closed and layers not in use forgotten.
  void stop();

  /// Of all files so far, what was read over included.
  std::uint64_t bytes_read() const noexcept { return bytes_read_; }
  /// How long acquire has waited so far.
  double seconds_waited() const noexcept { return seconds_waited_; }
  std::size_t buffer_bytes() const noexcept { return buffer_bytes_; }

 private:
  struct Slot {
    std::optional<std::size_t> layer;
    std::shared_ptr<Buffer> buffer;
    std::size_t users = 0;
    bool reading = false;
    std::exception_ptr failure;
    std::thread thread;
    std::atomic<bool> cancelled{false};
  };
  using Lock = std::unique_lock<std::mutex>;

  Slot* claim(std::size_t layer, bool while_reading, Lock& lock);
  Slot* find(std::size_t layer);
  Slot* free_slot(bool while_reading);
  void start(Slot& slot, std::size_t layer);
  void forget(Slot& slot, Lock& lock);
  void fill(Slot& slot, std::size_t layer);
  std::shared_ptr<File> file(std::size_t index);

  const std::vector<std::string> paths_;
  const std::vector<std::vector<Read>> reads_;
  const ReadOptions options_;
  std::size_t buffer_bytes_ = 0;
  std::atomic<std::uint64_t> bytes_read_{0};
  std::atomic<double> seconds_waited_{0.0};

  std::mutex mutex_;  // guards the slots
  std::condition_variable changed_;
  std::array<Slot, 2> slots_;
  std::mutex files_mutex_;
  std::vector<std::shared_ptr<File>> files_;
};

}  // namespace moetrace::weights
