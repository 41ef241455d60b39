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

namespace moetrace::pass {

/// What a patched run changes at one layer.
struct Patch {
  enum class Kind {
    kBlock,    ///< the clean block output in place of the noised one (section 3.3)
    kNull,     ///< the noised block output in place of itself: its rescue is the engine's numerical floor
    kExperts,  ///< patch vectors of chosen experts added to the noised block output (section 3.4)
  };
  std::int64_t layer = 0;
  Kind kind = Kind::kBlock;
  experts::ExpertPatch experts;

  bool operator==(const Patch&) const = default;
};

/// Every routed expert of a layer patched by itself: the clean-routed ones, or those of either run.
struct Sweep {
  std::int64_t layer = 0;
  std::int64_t top_k = 0;  ///< at most so many experts are routed to
  bool of_union = false;   ///< those too that only the noised run routes to
};

/// One trace, but for its cases: `patches` have a column each, `sweeps` a table by expert.
struct Job {
  std::int64_t layers = 0;
  std::int64_t draws = 1;
  std::vector<Patch> patches;
  std::vector<Sweep> sweeps;
  hooks::RowChange corruption = hooks::RowChange::kAdded;  ///< what becomes of the subject's embeddings
  /// Patches of experts switch them off in the run that they leave from, which nothing has corrupted; the
  /// replacements are the cases'.
  std::optional<experts::KnockOut> knock_out{};
};

/// One patched run of every draw.
struct Run {
  Patch patch;
  std::int64_t column = -1;  ///< among the job's patches; -1 for a run of a sweep
};

/// All runs of a job in order: its patches, then the slots of its sweeps.
std::vector<Run> runs_of(const Job& job);

/// A case as a pass sees it.
struct Case {
  tree::CaseShape shape;
  std::vector<std::int64_t> tokens;
  std::vector<float> vectors;  ///< (draws, subject tokens, width), what changes the subject's embeddings
  std::map<std::int64_t, experts::Replacements> instead{};  ///< by layer, where experts are knocked out
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
