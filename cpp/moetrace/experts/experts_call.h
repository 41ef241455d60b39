#pragma once

#include <optional>
#include <vector>

#include "moetrace/experts/expert_patch.h"
#include "moetrace/experts/fused_experts.h"
#include "moetrace/hooks/layer_exit.h"

namespace moetrace::experts {

/// One call of a layer's experts in a pass: what is spared the module, and what is patched behind it.
///
/// On the way in (kEnter: [hidden, index, weights, others…, the experts' weights where fused]) rows that have
/// just joined are left out, since their experts give what the experts of the rows give that they are copies
/// of; and where the layout is known the fused routine computes all rows and leaves the module a few that
/// count. On the way out (kLeave: [hidden, index, weights, output] and the pairs' outputs where the module
/// computed them, or the experts' weights where the layout is known) the rows the module computed are
/// compared, all rows are put back, and the patched rows get the noised row's output plus the sum of chosen
/// patch vectors.
class ExpertsCall final : public hooks::Site, public hooks::PatchedOutputs {
 public:
  /// A row that a patch changes.
  struct Written {
    std::int64_t item = 0, patch = 0;
    std::size_t group = 0;
    std::int64_t index = 0, row = 0;  ///< of a case and in it
    bool from_clean = false;          ///< goes on from the clean row, and loses what others gain
  };
  struct Rows {
    std::int64_t cases = 0;
    std::int64_t before = 0;            ///< rows a case before forks joined the layer
    std::int64_t inside = 0;            ///< rows a case inside the layer
    std::vector<std::int64_t> sources;  ///< of each case, of all its rows: the row whose output it shares
    std::vector<std::int64_t> checked;  ///< rows that count, for the comparison of the fused routine
    std::vector<std::int64_t> clean;    ///< by item: the clean row at the patched position
    std::vector<std::int64_t> noised;   ///< by item: the noised row there
    std::vector<Written> written;       ///< by item, and of an item by patch
    bool writes = true;                 ///< whether these rows are in the value, else they join behind it
    /// By case, draw and place: the items of a place's tokens, in order; none where a case doesn't have it.
    std::vector<std::vector<std::int64_t>> groups;
    std::vector<std::int64_t> tokens;  ///< of each place, in any case of the trace: how many at most
    std::int64_t experts = 0;          ///< of the layer, 0 where that isn't known
  };
  /// An item is a case, a noise draw and a token. Rows are numbers of rows of the whole value. `patches`: of
  /// this layer. `fused_from`: rows from which on the fused routine is used; 0 for never. `layout`: of the
  /// weights, wherever they are given.
  ExpertsCall(std::string name, Rows rows, std::vector<ExpertPatch> patches, std::int64_t fused_from,
              const Layout& layout = {});

  /// Whether patches are asked for, so that the site must fire.
  bool patches() const noexcept { return !clean_.empty(); }
  /// By group: the experts that either run routes its tokens to, and the norms of their patch vectors at the
  /// experts' output, over all its tokens together. Of a place with several tokens in any case, see
  /// :func:`together`; with no slots where the group is empty. Empty before it fired.
  const std::vector<RoutingUnion>& routing() const noexcept { return place_routing_; }
  const std::vector<std::vector<float>>& norms() const noexcept { return place_norms_; }
  /// Items, and those of a group.
  std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(clean_.size()); }
  const std::vector<std::int64_t>& items(std::size_t group) const { return rows_.groups.at(group); }
  const std::vector<Written>& written() const noexcept { return rows_.written; }
  /// Calls in which the fused routine served.
  std::int64_t fused_calls() const noexcept { return fused_calls_; }

  const hooks::RowIndex& watched_rows() const override { return watched_; }
  const Tensor& watched_output() const override { return *watched_output_; }
  const Tensor& patched() const override { return *patched_output_; }
  const Tensor& added() const override { return *added_; }
  std::optional<double> scale() const override { return scale_; }
  /// Say what the block multiplies its experts' output by.
  void scale_by(double factor) noexcept { scale_ = factor; }
  void reset() override;

 private:
  std::vector<Tensor> apply(hooks::Step step, const std::vector<Tensor>& given) override;
  std::vector<Tensor> enter(std::vector<Tensor> given);
  bool serves(const FusedExperts& experts, const Tensor& index) const;
  std::vector<Tensor> pairs(const Routed& call) const;
  std::vector<Tensor> leave(const std::vector<Tensor>& given);

  bool skip_new_rows(std::vector<Tensor>& values);
  bool compute_fused(std::vector<Tensor>& values);
  void check_fused(const Tensor& output) const;
  Tensor whole_output(const Tensor& output) const;
  std::vector<std::int64_t> in_call(const std::vector<std::int64_t>& rows) const;
  void unite_routings(const Tensor& index, const Tensor& weight);
  /// delta_e = c_e(clean) - c_e(noised) of every slot (equation 6): (items, 2k, width).
  Tensor patch_vectors(const Tensor& contribution) const;
  void unite_places();
  ExpertPatch resolved(const Written& own) const;
  /// The sum that each written row gains: (written, width).
  Tensor gains(const Tensor& delta) const;

  Rows rows_;
  std::vector<ExpertPatch> expert_patches_;
  std::int64_t fused_from_;
  Layout layout_;
  hooks::RowIndex kept_, place_;      ///< rows left in the call; row of the call for every row
  hooks::RowIndex watched_;           ///< rows whose contributions are needed, each once
  hooks::RowIndex origin_, written_;  ///< of each written row the row that it goes on from, and itself
  std::vector<std::int64_t> clean_, noised_items_;  ///< by item, into watched_
  std::int64_t fused_calls_ = 0;

  bool skipped_ = false;
  std::vector<std::int64_t> left_;  ///< rows of the call that the module computes where fused
  std::optional<FusedOutput> fused_;
  std::optional<Tensor> fused_index_, fused_weight_;  ///< of the watched rows
  std::optional<Tensor> watched_output_, patched_output_, added_;
  std::optional<double> scale_;
  std::vector<RoutingUnion> routing_, place_routing_;  ///< by item and by group
  std::vector<std::vector<float>> norms_, place_norms_;
};

}  // namespace moetrace::experts
