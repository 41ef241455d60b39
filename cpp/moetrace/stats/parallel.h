#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <thread>
#include <utility>

namespace moetrace::stats {

/// Says whether the caller wants to stop. Asked on the calling thread only, about ten times a second.
using Interrupt = std::function<bool()>;

/// Thrown out of a computation whose caller asked to stop.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

/// What a task sees of the computation that it is part of.
class Worker {
 public:
  Worker(std::size_t index, std::atomic<bool>& stop, const Interrupt* interrupt)
      : index_(index), stop_(stop), interrupt_(interrupt) {}

  /// Below the number of threads; tasks of the same index never overlap, so scratch may be kept by it.
  std::size_t index() const noexcept { return index_; }

  /// To be called every few milliseconds. Throws Interrupted once the caller or another task has stopped.
  void check();

 private:
  std::size_t index_;
  std::atomic<bool>& stop_;
  const Interrupt* interrupt_;  // null on every thread but the caller's
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
};

/// How a thread is started; another way than the default one is for tests.
using StartThread = std::function<std::thread(std::function<void()> work)>;

/// Runs task(0) ... task(tasks - 1), each once, on up to `threads` threads, the caller's among them; on fewer
/// where the system starts no more. The first exception of a task stops the rest and is rethrown here.
void parallel_for(
    std::size_t tasks, std::size_t threads, const Interrupt& interrupt,
    const std::function<void(std::size_t task, Worker& worker)>& task,
    const StartThread& start = [](std::function<void()> work) { return std::thread(std::move(work)); });

}  // namespace moetrace::stats
