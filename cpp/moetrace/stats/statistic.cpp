#include "moetrace/stats/statistic.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace moetrace::stats {

namespace {

using RowList = std::span<const std::uint32_t>;

/// The sum of some rows, in the order of the list. This is where a bootstrap spends its time.
Lanes sum_of(const Block& block, RowList rows) {
  Lanes sum = Lanes::Zero();
  for (const std::uint32_t row : rows) sum += block[row];
  return sum;
}

/// Eight columns as the rows that are drawn and as the units that a jackknife leaves out.
struct Columns {
  Columns(const MatrixView& x, std::size_t first, const Grouping& grouping)
      : Columns(ScaledBlock(x, first), grouping) {}
  Columns(ScaledBlock block, const Grouping& grouping)
      : used(block.used),
        exponents(block.exponents),
        units(cluster_sums(block.rows, grouping.labels, grouping.clusters)),
        cases(static_cast<double>(block.rows.size())),
        rows(grouping.draws_clusters() ? units : std::move(block.rows)),
        sums(rows) {}

  std::size_t used;
  std::array<int, kLanes> exponents;
  Block units;
  double cases;
  Block rows;
  LaneSums sums;
};

class Mean : public BlockStatistic {
 public:
  Mean(const MatrixView& x, std::size_t first, const Grouping& grouping)
      : x_(x, first, grouping),
        sizes_(cluster_sizes(static_cast<std::size_t>(x.rows()), grouping.labels, grouping.clusters)) {
    used = x_.used;
    exponents = x_.exponents;
    estimate = x_.sums.sum / x_.cases;
    noise = rounding_of(x_.rows.size()) * x_.sums.absolute / x_.cases;
  }

  Lanes replicate(RowList rows, double cases) override { return sum_of(x_.rows, rows) / cases; }

  Block leave_one_out() const override {
    Block values(sizes_.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = (x_.sums.sum - x_.units[i]) / (x_.cases - sizes_[i]);
    }
    return values;
  }

 private:
  Columns x_;
  std::vector<double> sizes_;
};

class Ratio : public BlockStatistic {
 public:
  Ratio(const MatrixView& x, const MatrixView& y, std::size_t first, const Grouping& grouping)
      : first_(first), x_(x, first, grouping), y_(y, first, grouping) {
    used = x_.used;
    const double rounding = rounding_of(x_.rows.size());
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const auto at = static_cast<Eigen::Index>(lane);
      exponents[lane] = x_.exponents[lane] - y_.exponents[lane];
      if (lane < used && std::fabs(y_.sums.sum[at]) <= rounding * y_.sums.absolute[at]) {
        refuse(lane, "; expected one that is not");
      }
    }
    estimate = x_.sums.sum / y_.sums.sum;
    noise = rounding * (x_.sums.absolute + estimate.abs() * y_.sums.absolute) / y_.sums.sum.abs();
  }

  Lanes replicate(RowList rows, double) override {
    const Lanes divisor = sum_of(y_.rows, rows);
    for (std::size_t lane = 0; lane < used; ++lane) {
      if (divisor[static_cast<Eigen::Index>(lane)] == 0.0) {
        refuse(lane, " in a resample; expected denominators that can't all vanish together");
      }
    }
    return sum_of(x_.rows, rows) / divisor;
  }

  Block leave_one_out() const override {
    Block values(x_.units.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = (x_.sums.sum - x_.units[i]) / (y_.sums.sum - y_.units[i]);
    }
    return values;
  }

 private:
  [[noreturn]] void refuse(std::size_t lane, const char* where) const {
    throw std::domain_error("the denominators of column " + std::to_string(first_ + lane) +
                            " have a mean of zero" + where);
  }

  std::size_t first_;
  Columns x_;
  Columns y_;
};

class Studentized : public BlockStatistic {
 public:
  Studentized(const MatrixView& x, std::size_t first) : cases_(static_cast<double>(x.rows())) {
    ScaledBlock block(x, first);
    used = block.used;
    exponents = block.exponents;
    const LaneSums sums(block.rows);
    estimate = sums.sum / cases_;
    noise = rounding_of(block.rows.size()) * sums.absolute / cases_;
    centred_ = std::move(block.rows);
    for (Lanes& row : centred_) {
      row -= estimate;
      squared_.push_back(row.square());
    }
    pivot_.error = (LaneSums(squared_).sum / (cases_ - 1.0) / cases_).sqrt();
  }

  Lanes replicate(RowList rows, double) override {
    const Lanes distance = sum_of(centred_, rows) / cases_;
    const Lanes variance = (sum_of(squared_, rows) / cases_ - distance.square()) / (cases_ - 1.0);
    pivot_.sum += distance;
    pivot_.squares += distance.square();
    Lanes value = distance / variance.sqrt();
    for (Eigen::Index lane = 0; lane < value.size(); ++lane) {
      if (variance[lane] > 0.0) continue;  // else one case, drawn n times
      const double far = std::copysign(std::numeric_limits<double>::infinity(), distance[lane]);
      value[lane] = distance[lane] == 0.0 ? 0.0 : far;
    }
    return value;
  }

  Block leave_one_out() const override { return {}; }
  const Pivot* pivot() const override { return &pivot_; }

 private:
  double cases_;
  Block centred_;
  Block squared_;
  Pivot pivot_;
};

class Quantile : public BlockStatistic {
 public:
  Quantile(const MatrixView& x, double q, std::size_t first, const Grouping& grouping)
      : q_(q),
        labels_(grouping.labels),
        by_cluster_(grouping.draws_clusters()),
        sizes_(cluster_sizes(static_cast<std::size_t>(x.rows()), labels_, grouping.clusters)),
        counts_(by_cluster_ ? grouping.clusters : static_cast<std::size_t>(x.rows())) {
    const ScaledBlock block(x, first);
    used = block.used;
    exponents = block.exponents;
    for (std::size_t lane = 0; lane < used; ++lane) {
      const auto at = static_cast<Eigen::Index>(lane);
      auto& column = sorted_[lane];
      for (std::size_t row = 0; row < block.rows.size(); ++row) {
        column.push_back({block.rows[row][at], static_cast<std::uint32_t>(row)});
      }
      std::sort(column.begin(), column.end());
    }
    estimate = values(static_cast<double>(x.rows()), [](std::uint32_t) { return 1.0; });
  }

  Lanes replicate(RowList rows, double cases) override {
    std::fill(counts_.begin(), counts_.end(), 0.0);
    for (const std::uint32_t row : rows) counts_[row] += 1.0;
    return values(cases,
                  [&](std::uint32_t row) { return counts_[by_cluster_ ? unit_of(row) : std::size_t{row}]; });
  }

  Block leave_one_out() const override {
    Block out;
    const auto cases = static_cast<double>(sorted_[0].size());
    for (std::size_t unit = 0; unit < sizes_.size(); ++unit) {
      out.push_back(
          values(cases - sizes_[unit], [&](std::uint32_t row) { return unit_of(row) == unit ? 0.0 : 1.0; }));
    }
    return out;
  }

 private:
  std::size_t unit_of(std::uint32_t row) const {
    return labels_.empty() ? row : static_cast<std::size_t>(labels_[row]);
  }

  /// The quantile of each column, its row counted count_of(row) times, `size` in all.
  template <class CountOf>
  Lanes values(double size, const CountOf& count_of) const {
    const double at = (size - 1.0) * q_;
    const double whole = std::floor(at);
    Lanes out = Lanes::Zero();
    for (std::size_t lane = 0; lane < used; ++lane) {
      const auto& column = sorted_[lane];
      double passed = 0.0;
      std::size_t i = 0;
      while ((passed += count_of(column[i].second)) <= whole) ++i;
      double value = column[i].first;
      if (at != whole && passed <= whole + 1.0) {
        std::size_t next = i + 1;
        while (count_of(column[next].second) == 0.0) ++next;
        value += (column[next].first - value) * (at - whole);
      }
      out[static_cast<Eigen::Index>(lane)] = value;
    }
    return out;
  }

  double q_;
  Labels labels_;
  bool by_cluster_;
  std::vector<double> sizes_;
  std::vector<double> counts_;
  std::array<std::vector<std::pair<double, std::uint32_t>>, kLanes> sorted_;
};

}  // namespace

MakeStatistic mean_statistic(const MatrixView& x, const Grouping& grouping) {
  return [=](std::size_t first) { return std::make_unique<Mean>(x, first, grouping); };
}

MakeStatistic ratio_statistic(const MatrixView& x, const MatrixView& y, const Grouping& grouping) {
  return [=](std::size_t first) { return std::make_unique<Ratio>(x, y, first, grouping); };
}

MakeStatistic studentized_statistic(const MatrixView& x) {
  return [=](std::size_t first) { return std::make_unique<Studentized>(x, first); };
}

MakeStatistic quantile_statistic(const MatrixView& x, double q, const Grouping& grouping) {
  return [=](std::size_t first) { return std::make_unique<Quantile>(x, q, first, grouping); };
}

}  // namespace moetrace::stats
