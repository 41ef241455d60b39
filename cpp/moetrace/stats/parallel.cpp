#include "moetrace/stats/parallel.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

namespace moetrace::stats {

namespace {

constexpr auto kInterval = std::chrono::milliseconds(100);

/// What the threads of one computation share.
struct Team {
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable finished;
  std::size_t running = 0;
  std::exception_ptr failure;

  void fail(std::exception_ptr what) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!failure) failure = what;
    stop = true;
  }

  void count_in() {
    const std::lock_guard<std::mutex> lock(mutex);
    ++running;
  }

  void sign_off() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (--running == 0) finished.notify_all();
  }
};

/// The caller has no task left: wait for the others, and keep asking whether to stop.
void wait_for_others(Team& team, const Interrupt& interrupt) {
  std::unique_lock<std::mutex> lock(team.mutex);
  while (!team.finished.wait_for(lock, kInterval, [&] { return team.running == 0; })) {
    lock.unlock();
    if (!team.stop && interrupt && interrupt()) team.fail(std::make_exception_ptr(Interrupted()));
    lock.lock();
  }
}

}  // namespace

void Worker::check() {
  if (stop_.load(std::memory_order_relaxed)) throw Interrupted();
  if (interrupt_ == nullptr || !*interrupt_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - asked_ < kInterval) return;
  asked_ = now;
  if ((*interrupt_)()) throw Interrupted();
}

void parallel_for(std::size_t tasks, std::size_t threads, const Interrupt& interrupt,
                  const std::function<void(std::size_t task, Worker& worker)>& task,
                  const StartThread& start) {
  Team team;
  const auto work = [&](std::size_t index, const Interrupt* ask) {
    Worker worker(index, team.stop, ask);
    try {
      for (std::size_t mine = team.next++; mine < tasks; mine = team.next++) {
        worker.check();
        task(mine, worker);
      }
    } catch (...) {
      team.fail(std::current_exception());
    }
  };
  const auto work_and_sign_off = [&](std::size_t index) {
    work(index, nullptr);
    team.sign_off();
  };

  const std::size_t wanted = std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(tasks, 1));
  std::vector<std::thread> others;
  others.reserve(wanted - 1);  // nothing may throw between a thread's start and its place here
  for (std::size_t index = 1; index < wanted; ++index) {
    team.count_in();
    try {
      others.push_back(start([&work_and_sign_off, index] { work_and_sign_off(index); }));
    } catch (const std::exception&) {  // out of threads or memory: those that run do all the tasks
      team.sign_off();
      break;
    }
  }
  work(0, &interrupt);
  wait_for_others(team, interrupt);
  for (auto& other : others) other.join();
  if (team.failure) std::rethrow_exception(team.failure);
}

}  // namespace moetrace::stats
