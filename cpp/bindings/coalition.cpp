#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "moetrace/coalition/additivity.h"
#include "moetrace/coalition/indices.h"
#include "moetrace/coalition/permutations.h"
#include "moetrace/coalition/sampled.h"
#include "moetrace/coalition/smallest.h"

using namespace moetrace::bindings;
using namespace moetrace::coalition;

namespace {

template <typename T>
std::span<const T> span_of(const In<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

void check_matrix(const py::array& array, const char* name) {
  if (array.ndim() != 2) throw std::invalid_argument(std::string(name) + " must have two dimensions");
}

Table table_of(const In<double>& values) {
  check_matrix(values, "values");
  return {span_of(values), values.shape(0), values.shape(1)};
}

Permutations permutations_of(const In<std::int64_t>& orders) {
  check_matrix(orders, "permutations");
  if (orders.shape(1) > kMaxPlayers) throw std::invalid_argument("permutations have more than 63 players");
  return {span_of(orders), static_cast<int>(orders.shape(1))};
}

/// Runs `work` with the GIL released; what it returns holds no Python object.
template <typename Work>
auto without_gil(const Work& work) {
  const py::gil_scoped_release released;
  return work();
}

auto per_player(Index index) {
  return [index](const In<double>& values) {
    const Table table = table_of(values);
    const auto [cells, players] = without_gil([&] {
      const CompleteGame game(table);
      return std::pair{player_values(game, index), game.players()};
    });
    return grid(cells, {table.cases, players});
  };
}

auto per_pair(Index index) {
  return [index](const In<double>& values) {
    const Table table = table_of(values);
    const auto [cells, players] = without_gil([&] {
      const CompleteGame game(table);
      return std::pair{interactions(game, index), game.players()};
    });
    return grid(cells, {table.cases, players, players});
  };
}

}  // namespace

void init_coalition(py::module_& m) {
  m.def(
      "subsets", [](int players) { return line(subsets(players)); }, py::arg("players"),
      "Every non-empty coalition of k players as a bitmask, ascending.");

  m.def("shapley", per_player(Index::shapley), py::arg("values"),
        "(cases, 2^k) values of all coalitions -> (cases, k) Shapley values.");
  m.def("banzhaf", per_player(Index::banzhaf), py::arg("values"),
        "(cases, 2^k) values of all coalitions -> (cases, k) Banzhaf values.");
  m.def("shapley_interaction", per_pair(Index::shapley), py::arg("values"),
        "(cases, 2^k) -> (cases, k, k) Shapley interaction indices; the values on the diagonal.");
  m.def("banzhaf_interaction", per_pair(Index::banzhaf), py::arg("values"),
        "(cases, 2^k) -> (cases, k, k) Banzhaf interaction indices; the values on the diagonal.");

  m.def(
      "sample_permutations",
      [](int players, std::int64_t count, std::uint64_t seed, std::uint64_t stream, bool antithetic) {
        const auto cells =
            without_gil([&] { return sample_permutations(players, count, seed, stream, antithetic); });
        return grid(cells, {count, players});
      },
      py::arg("players"), py::arg("count"), py::arg("seed"), py::arg("stream"), py::arg("antithetic"),
      "(count, players) permutations; a function of the arguments alone.");
  m.def(
      "prefix_coalitions",
      [](const In<std::int64_t>& permutations) {
        const Permutations orders = permutations_of(permutations);
        return line(without_gil([&] { return prefix_coalitions(orders); }));
      },
      py::arg("permutations"), "The distinct coalitions that form while players join, ascending.");
  m.def(
      "sampled_shapley",
      [](const In<std::int64_t>& permutations, const In<Mask>& coalitions, const In<double>& values,
         bool antithetic) {
        const Permutations orders = permutations_of(permutations);
        const Table table = table_of(values);
        const auto found = without_gil(
            [&] { return sampled_shapley(orders, ListedGame(table, span_of(coalitions)), antithetic); });
        const std::vector<py::ssize_t> shape{table.cases, orders.players()};
        return py::make_tuple(grid(found.means, shape), grid(found.standard_errors, shape));
      },
      py::arg("permutations"), py::arg("coalitions"), py::arg("values"), py::arg("antithetic"),
      "Means and standard errors, each (cases, players).");

  m.def(
      "smallest_coalition",
      [](const In<Mask>& coalitions, const In<double>& values, double share) {
        const Table table = table_of(values);
        const auto found =
            without_gil([&] { return smallest_coalition(ListedGame(table, span_of(coalitions)), share); });
        return py::make_tuple(line(found.sizes), line(found.coalitions), line(found.values));
      },
      py::arg("coalitions"), py::arg("values"), py::arg("share"),
      "Size, mask and value of each case's smallest coalition; -1, 0 and NaN where there is none.");
  m.def(
      "additivity",
      [](const In<Mask>& coalitions, const In<double>& values) {
        const Table table = table_of(values);
        const auto found = without_gil([&] { return additivity(ListedGame(table, span_of(coalitions))); });
        return py::make_tuple(line(found.singles), line(found.grand), line(found.difference));
      },
      py::arg("coalitions"), py::arg("values"),
      "Sum of the single players' gains, the grand coalition's gain, and their difference.");
}
