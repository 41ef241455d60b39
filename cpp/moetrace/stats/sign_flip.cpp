#include "moetrace/stats/sign_flip.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "moetrace/stats/random.h"

namespace moetrace::stats {

namespace {

constexpr double kTie = 1e-12;  // of a column's sum of absolute values
constexpr std::size_t kFlipsOfTask = 512;
constexpr std::size_t kWordBits = 32;
/// Rows whose signed sums are looked up at once, in a table of all 2^4 choices.
constexpr std::size_t kGroup = 4;
constexpr std::size_t kChoices = 16;
/// Groups whose tables (1 KiB each) are used together, so that they stay in the first-level cache.
constexpr std::size_t kCachedGroups = 32;

/// Signs as bits, row i in bit i % 32 of word i / 32; a set bit is +1.
void sign_words(std::uint64_t seed, std::uint64_t flip, bool exact, std::span<std::uint32_t> words) {
  if (!exact) return Stream(seed, Purpose::flip, flip).fill_words(words);
  for (std::size_t k = 0; k < words.size(); ++k) {
    words[k] = k < 2 ? static_cast<std::uint32_t>(flip >> (k * kWordBits)) : 0U;
  }
}

/// Columns by their observed statistic |sum|, the least extreme first.
struct OrderedColumns {
  std::size_t groups;               // of rows; what is missing to the last is zero
  std::size_t blocks;               // of columns
  std::vector<std::int64_t> order;  // of the column at each place
  std::vector<double> thresholds;   // at each place; out of reach where there is no column
  Block rows;                       // [block][row]

  explicit OrderedColumns(const MatrixView& x);

  std::size_t places() const { return blocks * kLanes; }
  std::span<const Lanes> block(std::size_t index) const {
    return std::span<const Lanes>(rows).subspan(index * groups * kGroup, groups * kGroup);
  }
  /// The thresholds of the columns, which ascend but for rounding.
  std::vector<double> steps() const {
    std::vector<double> sorted(thresholds.begin(),
                               thresholds.begin() + static_cast<std::ptrdiff_t>(order.size()));
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }
};

/// What leaves sums of values near the end of the range of doubles within it; a power of two.
double headroom(const MatrixView& x) {
  return x.size() > 0 && x.cwiseAbs().maxCoeff() > 0x1p960 ? 0x1p-64 : 1.0;
}

OrderedColumns::OrderedColumns(const MatrixView& x)
    : groups(ceil_div(static_cast<std::size_t>(x.rows()), kGroup)),
      blocks(ceil_div(static_cast<std::size_t>(x.cols()), kLanes)),
      order(static_cast<std::size_t>(x.cols())),
      thresholds(places(), std::numeric_limits<double>::infinity()),
      rows(blocks * groups * kGroup, Lanes::Zero()) {
  const double scale = headroom(x);
  const auto load = [&](std::size_t block, const auto& column_at) {
    Lanes* to = rows.data() + block * groups * kGroup;
    const std::size_t used = std::min(kLanes, order.size() - block * kLanes);
    for (Eigen::Index row = 0; row < x.rows(); ++row) {
      for (std::size_t lane = 0; lane < used; ++lane) {
        to[row][static_cast<Eigen::Index>(lane)] = scale * x(row, column_at(block * kLanes + lane));
      }
    }
  };
  std::vector<double> sums(places());
  std::vector<double> reach(places());
  for (std::size_t index = 0; index < blocks; ++index) {
    load(index, [](std::size_t place) { return static_cast<Eigen::Index>(place); });
    const LaneSums found(block(index));
    Eigen::Map<Lanes>(sums.data() + index * kLanes) = found.sum.abs();
    Eigen::Map<Lanes>(reach.data() + index * kLanes) = found.sum.abs() - kTie * found.absolute;
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return sums[static_cast<std::size_t>(a)] < sums[static_cast<std::size_t>(b)];
  });
  for (std::size_t place = 0; place < order.size(); ++place) {
    thresholds[place] = reach[static_cast<std::size_t>(order[place])];
  }
  for (std::size_t index = 0; index < blocks; ++index) {
    load(index, [&](std::size_t place) { return static_cast<Eigen::Index>(order[place]); });
  }
}

/// One thread's memory and its counts, by place in the order.
struct Tally {
  std::vector<std::uint8_t> choices;  // [flip][group]: the signs of a group's rows
  Block table = Block(kCachedGroups * kChoices);
  Eigen::Array<double, kFlipsOfTask, kLanes> sums;  // column by column
  std::array<double, kFlipsOfTask> running;         // largest |sum| of the flip so far
  std::vector<std::int64_t> own, joint;
  std::vector<std::int64_t> maxima;  // [k]: flips whose maximum over all columns reaches exactly k thresholds
};

void choose_signs(std::size_t groups, const SignFlipOptions& options, bool exact, std::size_t begin,
                  std::size_t end, std::vector<std::uint8_t>& choices) {
  std::vector<std::uint32_t> words(ceil_div(groups * kGroup, kWordBits));
  choices.clear();
  for (std::size_t flip = begin; flip < end; ++flip) {
    sign_words(options.seed, flip, exact, words);
    for (std::size_t bit = 0; bit < groups * kGroup; bit += kGroup) {
      choices.push_back(words[bit / kWordBits] >> (bit % kWordBits) & (kChoices - 1));
    }
  }
}

/// table [group][choice] = sum of the group's rows, those minus whose bit isn't set.
void fill_table(std::span<const Lanes> rows, Block& table) {
  for (std::size_t group = 0; group * kGroup < rows.size(); ++group) {
    Lanes* entry = table.data() + group * kChoices;
    entry[0].setZero();
    for (std::size_t k = 0, filled = 1; k < kGroup; ++k, filled *= 2) {
      const Lanes& row = rows[group * kGroup + k];
      for (std::size_t choice = 0; choice < filled; ++choice) {
        entry[filled + choice] = entry[choice] + row;
        entry[choice] -= row;
      }
    }
  }
}

/// sums[flip] = signs of the flip times the rows. This is where a test spends its time: a quarter of the
/// additions of a matrix product, in an order that is the same for every column.
void sum_flips(std::span<const Lanes> rows, std::size_t count, Tally& tally) {
  const std::size_t groups = rows.size() / kGroup;
  for (std::size_t first = 0; first < groups; first += kCachedGroups) {
    const std::size_t some = std::min(kCachedGroups, groups - first);
    fill_table(rows.subspan(first * kGroup, some * kGroup), tally.table);
    for (std::size_t flip = 0; flip < count; ++flip) {
      const std::uint8_t* choice = tally.choices.data() + flip * groups + first;
      Lanes sum = Lanes::Zero();
      for (std::size_t group = 0; group < some; ++group) sum += tally.table[group * kChoices + choice[group]];
      auto total = tally.sums.row(static_cast<Eigen::Index>(flip));
      if (first == 0) {
        total = sum;
      } else {
        total += sum.transpose();
      }
    }
  }
}

/// Counts the flips that reach the threshold of a column, by its own |sum| and by the largest so far.
void count_column(const double* sums, std::size_t count, std::size_t place, double threshold, Tally& tally) {
  std::int64_t own = 0;
  std::int64_t joint = 0;
  for (std::size_t flip = 0; flip < count; ++flip) {
    const double size = std::fabs(sums[flip]);
    const double largest = tally.running[flip] > size ? tally.running[flip] : size;
    tally.running[flip] = largest;
    own += size >= threshold;
    joint += largest >= threshold;
  }
  tally.own[place] += own;
  tally.joint[place] += joint;
}

/// Runs `count` flips over all columns, least extreme first.
void run_flips(const OrderedColumns& columns, std::span<const double> steps, std::size_t count,
               Worker& worker, Tally& tally) {
  tally.running.fill(0.0);
  for (std::size_t block = 0; block < columns.blocks; ++block) {
    worker.check();
    sum_flips(columns.block(block), count, tally);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const std::size_t place = block * kLanes + lane;
      count_column(tally.sums.data() + lane * kFlipsOfTask, count, place, columns.thresholds[place], tally);
    }
  }
  for (std::size_t flip = 0; flip < count; ++flip) {
    const auto reached = std::upper_bound(steps.begin(), steps.end(), tally.running[flip]);
    ++tally.maxima[static_cast<std::size_t>(reached - steps.begin())];
  }
}

/// Adds up the threads' tallies, by column.
void collect(const OrderedColumns& columns, std::span<const double> steps, const std::vector<Tally>& tallies,
             std::int64_t weight, SignFlipCounts& out) {
  const std::size_t size = columns.order.size();
  out.own.assign(size, 0);
  out.single_step.assign(size, 0);
  out.step_down.assign(size, 0);
  std::vector<std::int64_t> reaching(size + 2, 0);  // [k]: flips whose maximum reaches k thresholds or more
  for (const Tally& tally : tallies) {
    if (tally.own.empty()) continue;
    for (std::size_t k = 0; k <= size; ++k) reaching[k] += weight * tally.maxima[k];
    for (std::size_t place = 0; place < size; ++place) {
      const auto column = static_cast<std::size_t>(columns.order[place]);
      out.own[column] += weight * tally.own[place];
      out.step_down[column] += weight * tally.joint[place];
    }
  }
  for (std::size_t k = size + 1; k-- > 0;) reaching[k] += reaching[k + 1];
  for (std::size_t place = 0; place < size; ++place) {
    const auto step = std::lower_bound(steps.begin(), steps.end(), columns.thresholds[place]);
    out.single_step[static_cast<std::size_t>(columns.order[place])] =
        reaching[static_cast<std::size_t>(step - steps.begin()) + 1];
  }
}

}  // namespace

SignFlipCounts sign_flip(const MatrixView& x, const SignFlipOptions& options, const Interrupt& interrupt) {
  const auto rows = static_cast<std::size_t>(x.rows());
  if (rows == 0) throw std::invalid_argument("there are no rows whose signs could be flipped");
  const OrderedColumns columns(x);
  const std::vector<double> steps = columns.steps();
  SignFlipCounts out;
  out.exact = rows < 63 && (std::uint64_t{1} << rows) <= options.flips;
  out.flips = out.exact ? std::size_t{1} << rows : options.flips;
  // An assignment and its opposite have the same statistic: half of them are enough, counted twice.
  const std::size_t visited = out.exact ? out.flips / 2 : out.flips;

  std::vector<Tally> tallies(std::max<std::size_t>(options.threads, 1));
  parallel_for(ceil_div(visited, kFlipsOfTask), tallies.size(), interrupt,
               [&](std::size_t task, Worker& worker) {
                 Tally& tally = tallies[worker.index()];
                 tally.own.resize(columns.places());
                 tally.joint.resize(columns.places());
                 tally.maxima.resize(columns.order.size() + 1);
                 const std::size_t begin = task * kFlipsOfTask;
                 const std::size_t end = std::min(visited, begin + kFlipsOfTask);
                 choose_signs(columns.groups, options, out.exact, begin, end, tally.choices);
                 run_flips(columns, steps, end - begin, worker, tally);
               });
  collect(columns, steps, tallies, out.exact ? 2 : 1, out);
  out.order.assign(columns.order.rbegin(), columns.order.rend());
  return out;
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
