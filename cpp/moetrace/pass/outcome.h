#pragma once

#include <map>
#include <utility>
#include <vector>

#include "moetrace/pass/pass.h"

namespace moetrace::pass {

/// What the routers sent the patched token to in one layer, and what a sweep of its experts gave.
///
/// Of a place with several tokens in any case: who is active at any of them, sums of weights, the norm of the
/// patch vectors over all of them, logits of the last; slots as in experts::together. A case without the
/// place has nobody active and logits of NaN; where no case of a batch has it, there are no slots.
/// `slots`-wide tables are row-major over (case, draw, slot) of the routing union, `experts`-wide ones over
/// (case, draw, expert).
struct LayerOutcome {
  std::int64_t slots = 0, experts = 0;
  std::vector<std::int64_t> routed;  ///< expert of each slot
  std::vector<std::uint8_t> valid;   ///< whether the slot is part of the routing union
  std::vector<std::uint8_t> clean_active, noised_active, patched_active;
  std::vector<double> clean_weight, noised_weight;  ///< as applied, 0 where not routed
  std::vector<double> delta_norm;  ///< of the patch vector (equation 6) at the block's output
  std::vector<double> patched;     ///< logit difference of the sweep's run, NaN where there is none
  std::vector<double> direct, direct_linear;      ///< of the sweep's run, see Readings
  std::vector<double> clean_logit, noised_logit;  ///< of the router; empty where it isn't understood
};

/// What was read from one pass, row-major.
struct Readings {
  std::vector<double> differences;  ///< logit differences (cases, final rows of the pass)
  /// What each run's patch gives straight to the logits, exactly and with the final norm's scale frozen:
  /// (cases, runs, draws); empty where nobody asked.
  std::vector<double> direct, direct_linear;
};

/// What the passes of one batch gave: logit differences (true minus foil, equation 1) by case, patch and
/// draw, and for each routed layer by expert.
class Outcome {
 public:
  Outcome(const Job& job, std::int64_t cases);

  /// Take in a pass over the same cases. `scales`: what each routed layer's block multiplies its experts'
  /// output by. Throws std::invalid_argument where they don't fit.
  void take(const Pass& pass, const Readings& readings, const std::map<std::int64_t, double>& scales);

  std::int64_t cases() const noexcept { return cases_; }
  std::int64_t draws() const noexcept { return draws_; }
  std::int64_t patches() const noexcept { return patches_; }
  const std::vector<double>& clean() const noexcept { return clean_; }      ///< (cases)
  const std::vector<double>& noised() const noexcept { return noised_; }    ///< (cases, draws)
  const std::vector<double>& patched() const noexcept { return patched_; }  ///< (cases, patches, draws)
  /// (cases, patches): whether the case has the place of the patch; where not, its figures are NaN.
  const std::vector<std::uint8_t>& present() const noexcept { return present_; }
  /// (cases, patches, draws), NaN where nobody asked.
  const std::vector<double>& direct() const noexcept { return direct_; }
  const std::vector<double>& direct_linear() const noexcept { return direct_linear_; }
  /// By layer and place.
  const std::map<std::pair<std::int64_t, std::int64_t>, LayerOutcome>& layers() const noexcept {
    return layers_;
  }

 private:
  void take_routing(const Pass& pass, std::int64_t layer, std::int64_t place, double scale);
  void take_logits(const Pass& pass, std::int64_t layer, std::int64_t place, LayerOutcome& found) const;
  void take_sweep(const Run& run, std::int64_t item, const experts::RoutingUnion& routing, double difference,
                  double direct, double direct_linear);

  std::int64_t cases_, draws_, patches_;
  std::vector<double> clean_, noised_, patched_, direct_, direct_linear_;
  std::vector<std::uint8_t> present_;
  std::map<std::pair<std::int64_t, std::int64_t>, LayerOutcome> layers_;
};

}  // namespace moetrace::pass
