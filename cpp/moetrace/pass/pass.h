#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "moetrace/experts/experts_call.h"
#include "moetrace/experts/router_tap.h"
#include "moetrace/hooks/layer_entry.h"
#include "moetrace/hooks/layer_exit.h"
#include "moetrace/hooks/row_sites.h"
#include "moetrace/pass/job.h"
#include "moetrace/tree/layout.h"

namespace moetrace::pass {

/// Which module of the model a hook hangs on, and when and how it fires its site.
enum class Place {
  kEmbedding,    ///< behind the embedding
  kLayerEntry,   ///< before a layer
  kLayerExit,    ///< behind a layer
  kNorm,         ///< behind each module directly in the layer but the block
  kBlockEntry,   ///< before the block
  kBlockExit,    ///< behind the block, which is watched
  kBlockOutput,  ///< behind the block, whose output is patched
  kRouting,      ///< before the experts, whose routing is replaced
  kExpertsEntry,
  kExpertsExit,
  kRouter,
};

/// The kind of module that a hook hangs on: "embedding", "layer", "block", "experts" or "router".
const char* module_of(Place place) noexcept;

struct Hook {
  Place place;
  std::int64_t layer = -1;
  std::shared_ptr<hooks::Site> site;
  bool joins = false;  ///< kLayerExit: whether forks join there
};

/// One forward pass of a batch of cases with all their runs: which rows there are, what is hooked where, what
/// each site reads and writes, and what it saw.
///
/// The hooks are in the order in which they must be armed. A pass is used once; `reset` allows a second
/// forward.
class Pass {
 public:
  /// `begin`, `end`: which runs of the job. Throws std::invalid_argument for what can't be laid out.
  Pass(Job job, std::vector<LayerFacts> layers, std::vector<Case> cases, std::int64_t begin, std::int64_t end,
       tree::Join join);

  const Job& job() const noexcept { return job_; }
  const tree::Layout& layout() const noexcept { return layout_; }
  const std::vector<Hook>& hooks() const noexcept { return hooks_; }
  const std::vector<Run>& runs() const noexcept { return runs_; }
  const std::vector<Case>& cases() const noexcept { return cases_; }

  /// (cases, start rows), row-major.
  std::vector<std::int64_t> input_ids() const;
  std::vector<std::int64_t> position_ids() const;
  /// Rows of a case that are read out: clean, noised for each draw, then every fork.
  std::vector<std::int64_t> final_rows() const;
  /// The rows of the same runs at the final `count` positions of each prompt, the final one first: row-major
  /// (cases, runs, count). A fork's before its first row are those of the run that it leaves from; where a
  /// prompt has fewer tokens its first one stands in.
  std::vector<std::int64_t> last_rows(std::int64_t count) const;

  /// Layers with expert patches, whose routing is recorded.
  const std::map<std::int64_t, std::shared_ptr<experts::ExpertsCall>>& routed() const noexcept {
    return routed_;
  }
  /// Of each layer with expert patches the places where they are made, in ascending order.
  const std::map<std::int64_t, std::vector<std::int64_t>>& places() const noexcept { return places_; }
  /// The number of a case, draw and place among what a layer's experts were asked for, see
  /// experts::ExpertsCall::places.
  std::size_t group(std::int64_t layer, std::int64_t index, std::int64_t draw, std::int64_t place) const;
  const std::map<std::int64_t, std::shared_ptr<experts::RouterTap>>& routers() const noexcept {
    return routers_;
  }
  const LayerFacts& facts(std::int64_t layer) const { return facts_.at(static_cast<std::size_t>(layer)); }
  std::int64_t fused_calls() const noexcept;

  /// What went wrong at a site, and the hook that fired it; null where all is well.
  std::optional<hooks::Failure> failure() const;
  const Hook* failed() const noexcept;
  /// The hooks whose sites didn't fire exactly once, and what they did instead, in words; empty where all is
  /// well.
  std::vector<Hook> misfires() const;
  std::string misfired() const;
  /// Forget what was seen: the model is run again.
  void reset();
  /// Say what a layer's block multiplies its experts' output by, before the layer ends: forks of blocks with
  /// shared experts join behind it by that.
  void scale_experts(std::int64_t layer, double factor);

 private:
  void add(Place place, std::int64_t layer, std::shared_ptr<hooks::Site> site, bool must_fire);
  void add_corruption();
  std::shared_ptr<hooks::Site> add_entry(std::int64_t layer);
  void add_routing(std::int64_t layer);
  experts::KnockOut knock_out_of(std::int64_t layer) const;
  void add_experts(std::int64_t layer);
  void add_exit(std::int64_t layer);
  void add_block(std::int64_t layer);
  std::vector<std::int64_t> runs_at(std::int64_t layer, bool of_experts) const;
  experts::ExpertsCall::Rows rows_of_experts(std::int64_t layer, const std::vector<std::int64_t>& runs) const;
  std::int64_t block_source(std::int64_t index, std::int64_t run, std::int64_t row) const;
  std::vector<std::int64_t> checked_rows(std::int64_t layer) const;
  std::int64_t fork(std::int64_t run, std::int64_t draw) const noexcept { return run * job_.draws + draw; }

  Job job_;
  std::vector<LayerFacts> facts_;
  std::vector<Case> cases_;
  std::vector<Run> runs_;
  tree::Layout layout_;
  std::vector<Hook> hooks_;
  std::vector<Hook> must_fire_;
  std::map<std::int64_t, std::shared_ptr<experts::ExpertsCall>> routed_, calls_;
  std::map<std::int64_t, std::vector<std::int64_t>> places_;
  std::map<std::int64_t, std::shared_ptr<experts::RouterTap>> routers_;
};

}  // namespace moetrace::pass
