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
        runs.push_back(run);
      }
    }
  }
  return runs;
}

tree::Fork fork_of(const Run& run, std::int64_t draw) {
  return {run.patch.layer, draw, run.patch.place, run.patch.origin == Origin::kNoise};
}

}  // namespace moetrace::pass
