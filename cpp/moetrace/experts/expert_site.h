#pragma once

#include <optional>
#include <vector>

#include "moetrace/experts/players.h"
#include "moetrace/experts/recipe.h"
#include "moetrace/hooks/site.h"

namespace moetrace::experts {

/// Patches at the output of a layer's experts: out[fork] = out[noised] + sum of chosen patch vectors.
///
/// An item is a case and a noise draw; rows are numbers of rows of the whole value.
class ExpertSite final : public hooks::Site {
 public:
  /// clean, noised: int64 (items); destination: int64 (items, recipes), where each fork's row stands, or none
  /// where the forks have no rows yet: then the value stays as it is, and `patched` tells what they shall
  /// get.
  ExpertSite(std::string name, std::int64_t rows, at::Tensor clean, at::Tensor noised,
             std::optional<at::Tensor> destination, std::vector<Recipe> recipes);

  /// Rows whose contributions are needed, each once: int64 (wanted).
  const at::Tensor& wanted() const noexcept { return wanted_; }

  /// Say what the wanted rows were routed to, before the site fires. contribution: (wanted, k, width).
  void route(Routed routed);

  /// Known after the site has fired; std::runtime_error before.
  const Players& players() const;
  /// The experts' output of each fork: (items * recipes, width), recipes innermost; also known after it
  /// fired.
  const at::Tensor& patched() const;
  /// Largest |sum of contributions - output| over the wanted rows, and the largest |output| there.
  double sum_error() const noexcept { return sum_error_; }
  double output_size() const noexcept { return output_size_; }
  void reset() override;

 private:
  at::Tensor apply(const at::Tensor& value) override;
  at::Tensor factors(const at::TensorOptions& options) const;

  std::int64_t rows_;
  at::Tensor noised_, wanted_, clean_item_, noised_item_, patched_;
  std::optional<at::Tensor> destination_;
  std::vector<Recipe> recipes_;
  Routed routed_;
  Players players_;
  double sum_error_ = 0.0, output_size_ = 0.0;
};

}  // namespace moetrace::experts
