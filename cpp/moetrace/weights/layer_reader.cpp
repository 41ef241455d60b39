#include "moetrace/weights/layer_reader.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace moetrace::weights {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kInterval = std::chrono::milliseconds(50);

std::vector<std::vector<Read>> plans(const std::vector<LayerReader::Segments>& layers,
                                     const ReadOptions& options) {
  std::vector<std::vector<Read>> found;
  found.reserve(layers.size());
  for (const auto& segments : layers) found.push_back(plan_reads(segments, options.bytes, options.gap));
  return found;
}

/// Copies what a read brought to its places; ReadError where the file ended before.
void distribute(const Read& read, std::uint64_t got, const std::string& path, const Buffer& bounce,
                const Buffer& buffer) {
  for (const Copy& copy : read.copies) {
    if (copy.from + copy.bytes > got) {
      throw ReadError(path, "the file is cut off: it ends before byte " +
                                std::to_string(read.offset + copy.from + copy.bytes));
    }
    std::memcpy(buffer.data() + copy.destination, bounce.data() + copy.from, copy.bytes);
  }
}

}  // namespace

LayerReader::LayerReader(std::vector<std::string> files, const std::vector<Segments>& layers,
                         ReadOptions options)
    : paths_(std::move(files)), reads_(plans(layers, options)), options_(options), files_(paths_.size()) {
  for (const auto& segments : layers) {
    for (const Segment& segment : segments) {
      if (segment.file >= paths_.size())
        throw std::invalid_argument("a segment names a file that isn't there");
      buffer_bytes_ = std::max<std::size_t>(buffer_bytes_, segment.destination + segment.bytes);
    }
  }
}

LayerReader::~LayerReader() {
  Lock lock(mutex_);
  for (Slot& slot : slots_) forget(slot, lock);
}

void LayerReader::prefetch(std::size_t layer) {
  Lock lock(mutex_);
  claim(layer, false, lock);
}

std::shared_ptr<Buffer> LayerReader::acquire(std::size_t layer, const stats::Interrupt& interrupt) {
  Lock lock(mutex_);
  Slot* slot = claim(layer, true, lock);
  if (slot == nullptr)
    throw std::logic_error("layer " + std::to_string(layer) +
                           " can't be read: two other layers are in use, and there are two buffers");
  ++slot->users;
  const auto begin = Clock::now();
  while (!changed_.wait_for(lock, kInterval, [&] { return !slot->reading; })) {
    lock.unlock();
    const bool stop = interrupt && interrupt();
    lock.lock();
    if (stop) {
      --slot->users;
      throw stats::Interrupted();
    }
  }
  seconds_waited_ = seconds_waited_ + std::chrono::duration<double>(Clock::now() - begin).count();
  if (slot->failure) {
    const std::exception_ptr failure = slot->failure;
    if (--slot->users == 0) forget(*slot, lock);  // the next try reads again
    std::rethrow_exception(failure);
  }
  return slot->buffer;
}

void LayerReader::release(std::size_t layer) {
  const Lock lock(mutex_);
  Slot* slot = find(layer);
  if (slot == nullptr || slot->users == 0)
    throw std::logic_error("layer " + std::to_string(layer) + " is released but not in use");
  --slot->users;
}

void LayerReader::stop() {
  Lock lock(mutex_);
  for (Slot& slot : slots_) {
    if (slot.users == 0) {
      forget(slot, lock);
      slot.buffer.reset();
    }
  }
  const std::lock_guard<std::mutex> files_lock(files_mutex_);
  files_.assign(paths_.size(), nullptr);
}

/// The slot that holds the layer or reads it from now on; null where none is free.
LayerReader::Slot* LayerReader::claim(std::size_t layer, bool while_reading, Lock& lock) {
  if (layer >= reads_.size())
    throw std::out_of_range("layer " + std::to_string(layer) + " of " + std::to_string(reads_.size()));
  for (;;) {
    if (Slot* slot = find(layer)) return slot;
    Slot* slot = free_slot(while_reading);
    if (slot == nullptr) return nullptr;
    if (!slot->thread.joinable()) {
      start(*slot, layer);
      return slot;
    }
    forget(*slot, lock);  // another thread may have claimed the layer meanwhile
  }
}

LayerReader::Slot* LayerReader::find(std::size_t layer) {
  for (Slot& slot : slots_) {
    if (slot.layer == layer) return &slot;
  }
  return nullptr;
}

/// A buffer that nobody uses, an empty one first; `while_reading`: also one that is being filled.
LayerReader::Slot* LayerReader::free_slot(bool while_reading) {
  Slot* found = nullptr;
  for (Slot& slot : slots_) {
    if (slot.users != 0 || (slot.reading && !while_reading)) continue;
    if (found == nullptr || found->reading || !slot.layer) found = &slot;
  }
  return found;
}

void LayerReader::start(Slot& slot, std::size_t layer) {
  if (!slot.buffer) slot.buffer = std::make_shared<Buffer>(buffer_bytes_);
  slot.layer = layer;
  slot.reading = true;
  slot.cancelled = false;
  try {
    slot.thread = std::thread([this, &slot, layer] { fill(slot, layer); });
  } catch (...) {
    slot.reading = false;
    slot.layer.reset();
    throw;
  }
}

/// The slot's thread has ended and its layer isn't there any more. The lock is given up meanwhile, and nobody
/// else takes the slot.
void LayerReader::forget(Slot& slot, Lock& lock) {
  slot.layer.reset();
  slot.cancelled = true;
  std::thread thread = std::exchange(slot.thread, std::thread());
  if (thread.joinable()) {
    ++slot.users;
    lock.unlock();
    thread.join();
    lock.lock();
    --slot.users;
  }
  slot.failure = nullptr;
}

void LayerReader::fill(Slot& slot, std::size_t layer) {
  std::exception_ptr failure;
  try {
    const Buffer bounce(options_.bytes);
    for (const Read& read : reads_[layer]) {
      if (slot.cancelled) break;
      const std::shared_ptr<File> source = file(read.file);
      const std::uint64_t got = source->read(read.offset, read.bytes, bounce.data());
      bytes_read_ += got;
      distribute(read, got, source->path(), bounce, *slot.buffer);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  {
    const Lock lock(mutex_);
    slot.failure = failure;
    slot.reading = false;
  }
  changed_.notify_all();
}

std::shared_ptr<File> LayerReader::file(std::size_t index) {
  const std::lock_guard<std::mutex> lock(files_mutex_);
  if (!files_[index]) files_[index] = std::make_shared<File>(paths_[index], options_.direct);
  return files_[index];
}

}  // namespace moetrace::weights
