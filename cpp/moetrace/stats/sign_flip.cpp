#include "moetrace/stats/sign_flip.h"

#include <algorithm>
#include <stdexcept>

#include "moetrace/stats/flip_columns.h"
#include "moetrace/stats/random.h"

namespace moetrace::stats {

namespace {

constexpr std::size_t kFlipsOfTask = 1024;  // whole bundles
constexpr std::size_t kWordBits = 32;

/// Signs as bits, row i in bit i % 32 of word i / 32; a set bit is +1.
void sign_words(std::uint64_t seed, std::uint64_t flip, bool exact, std::span<std::uint32_t> words) {
  if (!exact) return Stream(seed, Purpose::flip, flip).fill_words(words);
  for (std::size_t k = 0; k < words.size(); ++k) {
    words[k] = k < 2 ? static_cast<std::uint32_t>(flip >> (k * kWordBits)) : 0U;
  }
}

/// Counts of one thread, by place in the order.
template <class T>
struct Tally {
  AlignedBuffer<T> table, sums;
  AlignedBuffer<typename FlipColumns<T>::Running> running;
  AlignedBuffer<std::int64_t> own, joint;
  std::vector<std::uint8_t> patterns;
  std::vector<std::int64_t> maxima;  // [k]: flips whose maximum over all columns reaches exactly k thresholds

  void start(std::size_t places) {
    if (own.data() != nullptr) return;
    maxima.assign(places + 1, 0);
    std::fill_n(own.reserve(places), places, 0);
    std::fill_n(joint.reserve(places), places, 0);
  }
};

/// Bundles of patterns (see Kernels) of flips begin ... end - 1.
void fill_patterns(std::size_t rows, const SignFlipOptions& options, bool exact, std::size_t begin,
                   std::size_t end, std::vector<std::uint8_t>& patterns) {
  const std::size_t groups = ceil_div(rows, kGroupRows);
  std::vector<std::uint32_t> words(ceil_div(rows, kWordBits));
  patterns.assign(ceil_div(end - begin, kBundle) * groups * kBundle, 0);
  for (std::size_t i = 0; i < end - begin; ++i) {
    sign_words(options.seed, begin + i, exact, words);
    std::uint8_t* to = patterns.data() + i / kBundle * groups * kBundle + i % kBundle;
    for (std::size_t group = 0; group < groups; ++group) {
      const std::size_t bit = group * kGroupRows;
      const std::uint32_t subset = words[bit / kWordBits] >> (bit % kWordBits) & 15U;
      to[group * kBundle] = static_cast<std::uint8_t>(subset * kLanes);
    }
  }
}

void follow_maximum(const FlipColumns<double>& columns, std::size_t block, std::size_t count,
                    Tally<double>& tally) {
  const std::size_t place = block * FlipColumns<double>::kWidth;
  kernels().running_maximum(tally.sums.data(), count, columns.thresholds.data() + place, tally.running.data(),
                            tally.own.data() + place, tally.joint.data() + place);
}

void follow_maximum(const FlipColumns<std::int32_t>& columns, std::size_t block, std::size_t count,
                    Tally<std::int32_t>& tally) {
  const std::size_t place = block * FlipColumns<std::int32_t>::kWidth;
  kernels().running_maximum_narrow(tally.sums.data(), count, columns.thresholds.data() + place,
                                   columns.units.data() + place, columns.running_thresholds.data() + place,
                                   tally.running.data(), tally.own.data() + place,
                                   tally.joint.data() + place);
}

/// Runs `count` flips over all columns, least extreme first, and adds to the tally.
template <class T>
void run_flips(const FlipColumns<T>& columns, std::size_t count, Worker& worker, Tally<T>& tally) {
  constexpr std::size_t kWidth = FlipColumns<T>::kWidth;
  const SumKernels<T>& run = sum_kernels<T>(kernels());
  const std::size_t groups = ceil_div(columns.rows, kGroupRows);
  T* table = tally.table.reserve(kCachedGroups * kTableRows * kWidth);
  T* sums = tally.sums.reserve(kFlipsOfTask * kWidth);
  auto* running = tally.running.reserve(kFlipsOfTask);
  std::fill_n(running, count, 0);
  for (std::size_t block = 0; block < columns.blocks; ++block) {
    worker.check();
    for (std::size_t group = 0; group < groups; group += kCachedGroups) {
      const std::size_t some = std::min(kCachedGroups, groups - group);
      run.fill_tables(columns.block(block) + group * kGroupRows * kWidth, some, Weights::signs, table);
      run.sum_signs(table, some, tally.patterns.data() + group * kBundle, groups * kBundle,
                    ceil_div(count, kBundle), group > 0, sums);
    }
    follow_maximum(columns, block, count, tally);
  }
  for (std::size_t flip = 0; flip < count; ++flip) {
    const auto reached = std::upper_bound(columns.steps.begin(), columns.steps.end(), running[flip]);
    ++tally.maxima[static_cast<std::size_t>(reached - columns.steps.begin())];
  }
}

/// Adds up the threads' tallies, by column.
template <class T>
void collect(const FlipColumns<T>& columns, const std::vector<Tally<T>>& tallies, std::int64_t weight,
             SignFlipCounts& out) {
  const std::size_t size = columns.order.size();
  out.own.assign(size, 0);
  out.single_step.assign(size, 0);
  out.step_down.assign(size, 0);
  std::vector<std::int64_t> reaching(size + 2, 0);  // [k]: flips whose maximum reaches k thresholds or more
  for (const Tally<T>& tally : tallies) {
    if (tally.own.data() == nullptr) continue;
    for (std::size_t k = 0; k <= size; ++k) reaching[k] += weight * tally.maxima[k];
    for (std::size_t place = 0; place < size; ++place) {
      const auto column = static_cast<std::size_t>(columns.order[place]);
      out.own[column] += weight * tally.own.data()[place];
      out.step_down[column] += weight * tally.joint.data()[place];
    }
  }
  for (std::size_t k = size + 1; k-- > 0;) reaching[k] += reaching[k + 1];
  for (std::size_t place = 0; place < size; ++place) {
    const auto threshold = columns.running_thresholds.data()[place];
    const auto step = std::lower_bound(columns.steps.begin(), columns.steps.end(), threshold);
    out.single_step[static_cast<std::size_t>(columns.order[place])] =
        reaching[static_cast<std::size_t>(step - columns.steps.begin()) + 1];
  }
}

template <class T>
SignFlipCounts flip_columns(const MatrixView& x, const SignFlipOptions& options, const Interrupt& interrupt) {
  const FlipColumns<T> columns(x);
  SignFlipCounts out;
  out.exact = columns.rows < 63 && (std::uint64_t{1} << columns.rows) <= options.flips;
  out.flips = out.exact ? std::size_t{1} << columns.rows : options.flips;
  // An assignment and its opposite have the same statistic: half of them are enough, counted twice.
  const std::size_t visited = out.exact ? out.flips / 2 : out.flips;

  std::vector<Tally<T>> tallies(std::max<std::size_t>(options.threads, 1));
  const auto run_task = [&](std::size_t task, Worker& worker) {
    Tally<T>& tally = tallies[worker.index()];
    tally.start(columns.places());
    const std::size_t begin = task * kFlipsOfTask;
    const std::size_t end = std::min(visited, begin + kFlipsOfTask);
    fill_patterns(columns.rows, options, out.exact, begin, end, tally.patterns);
    run_flips(columns, end - begin, worker, tally);
  };
  parallel_for(ceil_div(visited, kFlipsOfTask), tallies.size(), interrupt, run_task);
  collect(columns, tallies, out.exact ? 2 : 1, out);
  out.order.assign(columns.order.rbegin(), columns.order.rend());
  return out;
}

}  // namespace

SignFlipCounts sign_flip(const MatrixView& x, const SignFlipOptions& options, const Interrupt& interrupt) {
  const auto rows = static_cast<std::size_t>(x.rows());
  if (rows == 0) throw std::invalid_argument("there are no rows whose signs could be flipped");
  const bool narrow = rows >= kFewestNarrowRows && rows <= kMostNarrowRows;
  return narrow ? flip_columns<std::int32_t>(x, options, interrupt)
                : flip_columns<double>(x, options, interrupt);
}

std::vector<std::int8_t> flip_signs(std::size_t rows, std::uint64_t seed, std::size_t first,
                                    std::size_t count) {
  std::vector<std::int8_t> signs(count * rows);
  std::vector<std::uint32_t> words(ceil_div(rows, kWordBits));
  for (std::size_t flip = 0; flip < count; ++flip) {
    sign_words(seed, first + flip, false, words);
    for (std::size_t row = 0; row < rows; ++row) {
      const bool positive = (words[row / kWordBits] >> (row % kWordBits) & 1U) != 0;
      signs[flip * rows + row] = positive ? 1 : -1;
    }
  }
  return signs;
}

}  // namespace moetrace::stats
