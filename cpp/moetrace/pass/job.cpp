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
        runs.push_back(run);
      }
    }
  }
  return runs;
}

}  // namespace moetrace::pass
