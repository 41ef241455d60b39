#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "moetrace/experts/expert_patch.h"
#include "moetrace/experts/knock_out.h"
#include "moetrace/experts/layout.h"
#include "moetrace/hooks/row_sites.h"
#include "moetrace/tree/case_shape.h"
#include "moetrace/tree/fork.h"

namespace moetrace::pass {

/// Which run a patched run leaves from, and so whose values it takes.
enum class Origin {
  kDenoise,  ///< from the noised run of its draw; takes clean values (equation 4)
  kNoise,    ///< from the clean run; takes the noised values of its draw
};

/// What a patched run changes at one layer.
struct Patch {
  enum class Kind {
    kBlock,    ///< the other run's block output in place of its own (section 3.3)
    kNull,     ///< its own block output in place of itself: its rescue is the engine's numerical floor
    kExperts,  ///< patch vectors of chosen experts added to its block output (section 3.4), or taken from it
  };
  std::int64_t layer = 0;
  Kind kind = Kind::kBlock;
  experts::ExpertPatch experts{};
  std::int64_t place = 0;  ///< where: a number among a case's places
  Origin origin = Origin::kDenoise;
  bool fixed_routing = false;  ///< later layers route its tokens as the run that it leaves from

  bool operator==(const Patch&) const = default;
};

/// Every routed expert of a layer patched by itself: the clean-routed ones, or those of either run.
struct Sweep {
  std::int64_t layer = 0;
  std::int64_t top_k = 0;  ///< a run routes the tokens of the place to at most so many experts
  bool of_union = false;   ///< those too that only the noised run routes to
  std::int64_t place = 0;
  Origin origin = Origin::kDenoise;
  std::int64_t per_token = 0;  ///< a run routes one token to at most so many experts, 0 where unsaid
};

/// One trace, but for its cases: `patches` have a column each, `sweeps` a table by expert.
struct Job {
  std::int64_t layers = 0;
  std::int64_t draws = 1;
  std::vector<Patch> patches;
  std::vector<Sweep> sweeps;
  hooks::RowChange corruption = hooks::RowChange::kAdded;  ///< what becomes of the subject's embeddings
  std::vector<std::int64_t> place_tokens{};  ///< of each place, in any case: tokens at most; 1 where unsaid
  /// Patches of experts switch them off in the clean run; what comes instead is the cases' to say.
  std::optional<experts::KnockOut> knock_out{};

  std::int64_t tokens_of(std::int64_t place) const noexcept {
    const auto at = static_cast<std::size_t>(place);
    return at < place_tokens.size() ? place_tokens[at] : 1;
  }
};

/// One patched run of every draw.
struct Run {
  Patch patch;
  std::int64_t column = -1;  ///< among the job's patches; -1 for a run of a sweep
  std::int64_t skipped = 0;  ///< tokens of its place, from the first on, at which it changes nothing
};

/// All runs of a job in order: its patches, then the slots of its sweeps.
std::vector<Run> runs_of(const Job& job);

/// The fork of a run in one draw.
tree::Fork fork_of(const Run& run, std::int64_t draw);

/// A case as a pass sees it.
struct Case {
  tree::CaseShape shape;
  std::vector<std::int64_t> tokens;
  std::vector<float> vectors;  ///< (draws, subject tokens, width), what changes the subject's embeddings
  /// By layer and position, where experts are knocked out.
  std::map<std::int64_t, std::map<std::int64_t, experts::Replacements>> instead{};
};

/// What a pass has to know of a layer of the model.
struct LayerFacts {
  bool experts = false;                     ///< has an experts module
  std::int64_t expert_count = 0;            ///< 0 where it isn't known or not needed
  std::int64_t fused_from = 0;              ///< rows from which on the fused routine is used, 0 for never
  std::int64_t checked_rows = 2;            ///< rows that the module computes all the same, for comparison
  std::optional<experts::Layout> layout{};  ///< of the experts' weights; none where it isn't known
};

}  // namespace moetrace::pass
