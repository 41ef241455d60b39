#include "moetrace/pass/job.h"

namespace moetrace::pass {

std::vector<Run> runs_of(const Job& job) {
  std::vector<Run> runs;
  runs.reserve(job.patches.size());
  for (const Patch& patch : job.patches) runs.push_back({patch, static_cast<std::int64_t>(runs.size())});
  for (const Sweep& sweep : job.sweeps) {
    for (const bool noised : {false, true}) {
      if (noised && !sweep.of_union) continue;
      for (std::int64_t slot = 0; slot < sweep.top_k; ++slot) {
        Run run;
        run.patch.layer = sweep.layer;
        run.patch.kind = Patch::Kind::kExperts;
        run.patch.experts.chosen = experts::Chosen::kSlot;
        run.patch.experts.slot = slot;
        run.patch.experts.noised_slot = noised;
        run.patch.place = sweep.place;
        run.patch.origin = sweep.origin;
        // Experts have their slots in the order in which tokens are first routed to them, so many at a token
        // at most. Of a knock-out the expert has nothing to take away before. Others also take out what it
        // gives the noised run, which may route earlier tokens to it.
        if (job.knock_out && sweep.per_token > 0) run.skipped = slot / sweep.per_token;
        runs.push_back(run);
      }
    }
  }
  return runs;
}

tree::Fork fork_of(const Run& run, std::int64_t draw) {
  return {run.patch.layer, draw, run.patch.place, run.patch.origin == Origin::kNoise, run.skipped};
}

}  // namespace moetrace::pass
