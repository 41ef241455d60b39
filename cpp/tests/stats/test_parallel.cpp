#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "moetrace/stats/parallel.h"

using namespace moetrace::stats;

TEST_CASE("every task runs once") {
  for (const std::size_t threads : {0U, 1U, 3U, 50U}) {
    std::vector<std::atomic<int>> runs(20);
    parallel_for(20, threads, {}, [&](std::size_t task, Worker&) { ++runs[task]; });
    for (const auto& count : runs) CHECK(count == 1);
  }
  parallel_for(0, 4, {}, [](std::size_t, Worker&) { FAIL("no task was asked for"); });
}

TEST_CASE("the first exception of any task is rethrown and ends the rest") {
  std::atomic<int> started{0};
  const auto run = [&] {
    parallel_for(1000, 2, {}, [&](std::size_t task, Worker&) {
      ++started;
      if (task == 3) throw std::runtime_error("task three");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  };
  CHECK_THROWS_WITH(run(), "task three");
  CHECK(started < 1000);
}

TEST_CASE("an interrupt is noticed inside a task, and while the caller only waits for others") {
  const auto endless = [](Worker& worker) {
    for (;;) {
      worker.check();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  CHECK_THROWS_AS(parallel_for(
                      2, 2, [] { return true; }, [&](std::size_t, Worker& worker) { endless(worker); }),
                  Interrupted);
  const auto caller = std::this_thread::get_id();
  const auto only_others = [&](std::size_t, Worker& worker) {
    if (std::this_thread::get_id() != caller) endless(worker);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  CHECK_THROWS_AS(parallel_for(2, 2, [] { return true; }, only_others), Interrupted);
}

TEST_CASE("where the system starts no more threads, those that run do all the tasks") {
  for (const std::size_t most : {0U, 1U, 2U}) {
    std::size_t started = 0;
    const StartThread limited = [&](std::function<void()> work) {
      if (started == most)
        throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
      ++started;
      return std::thread(std::move(work));
    };
    std::vector<std::atomic<int>> runs(20);
    parallel_for(20, 8, {}, [&](std::size_t task, Worker&) { ++runs[task]; }, limited);
    for (const auto& count : runs) CHECK(count == 1);
    CHECK(started == most);
  }
}

TEST_CASE("an exception of another thread's task reaches the caller") {
  const auto caller = std::this_thread::get_id();
  const auto fail = [&](std::size_t, Worker&) {
    if (std::this_thread::get_id() != caller) throw std::runtime_error("elsewhere");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  CHECK_THROWS_WITH(parallel_for(100, 2, {}, fail), "elsewhere");
}
