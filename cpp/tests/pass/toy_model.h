#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "../experts/plain_experts.h"
#include "moetrace/experts/controls.h"
#include "moetrace/pass/outcome.h"
#include "moetrace/tree/visibility.h"

/// A small Mixture-of-Experts model, twice: with a pass's sites at its hooks, and as plain loops over one
/// sequence, which is the oracle.
///
/// A layer: every token gets the mean of what it sees added (its attention); a norm halves; a router sends it
/// to two of five experts; their output is added to the stream.
namespace moetrace::testing {

constexpr std::int64_t kLayers = 3, kWidth = 4, kExperts = 5, kTopK = 2, kVocabulary = 11;

struct Chosen {
  std::vector<std::int64_t> expert;
  Line weight, logits;

  double weight_of(std::int64_t wanted) const {
    const auto found = std::find(expert.begin(), expert.end(), wanted);
    return found == expert.end() ? 0.0 : weight[static_cast<std::size_t>(found - expert.begin())];
  }
  bool has(std::int64_t wanted) const {
    return std::find(expert.begin(), expert.end(), wanted) != expert.end();
  }
};

struct ToyModel {
  std::vector<PlainExperts> experts;
  Numbers embedding = varied(kVocabulary * kWidth, 0.3), head = varied(kWidth, 1.1);
  std::vector<Numbers> router;

  ToyModel() {
    for (int layer = 0; layer < kLayers; ++layer) {
      PlainExperts own;
      own.gate_up = varied(own.gate_up.size(), 0.1 + layer);
      own.down = varied(own.down.size(), 0.7 + layer);
      experts.push_back(own);
      router.push_back(varied(kExperts * kWidth, 0.2 + 2 * layer));
    }
  }

  Chosen route(std::int64_t layer, const Line& normed) const {
    Chosen found;
    for (std::int64_t expert = 0; expert < kExperts; ++expert) {
      double logit = 0;
      for (std::int64_t i = 0; i < kWidth; ++i) {
        const float own =
            router[static_cast<std::size_t>(layer)][static_cast<std::size_t>(expert * kWidth + i)];
        logit += 4.0 * static_cast<double>(own) * normed[static_cast<std::size_t>(i)];
      }
      found.logits.push_back(logit);
    }
    std::vector<std::int64_t> order{0, 1, 2, 3, 4};
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return found.logits[static_cast<std::size_t>(a)] > found.logits[static_cast<std::size_t>(b)];
    });
    double total = 0;
    for (std::int64_t place = 0; place < kTopK; ++place) {
      const std::int64_t expert = order[static_cast<std::size_t>(place)];
      found.expert.push_back(expert);
      found.weight.push_back(std::exp(found.logits[static_cast<std::size_t>(expert)] -
                                      found.logits[static_cast<std::size_t>(order[0])]));
      total += found.weight.back();
    }
    for (double& weight : found.weight) weight /= total;
    return found;
  }

  double read(const Line& hidden) const {
    double found = 0;
    for (std::size_t i = 0; i < kWidth; ++i) found += static_cast<double>(head[i]) * hidden[i];
    return found;
  }
};

/// What a block gives at some tokens, put in the place of its own output.
struct PlainPatch {
  std::int64_t layer = -1;
  std::map<std::int64_t, Line> output{};  ///< by position
};

/// One sequence by plain loops.
struct PlainRun {
  std::vector<std::vector<Line>> block;                ///< of each layer, of each token
  std::vector<std::vector<Chosen>> routed;             ///< likewise
  std::vector<std::vector<std::vector<Line>>> shares;  ///< likewise, of each expert: its contribution
  double difference = 0;                               ///< at the final token

  /// `noise`: added to the embeddings from `start` on, (tokens, width).
  PlainRun(const ToyModel& model, const std::vector<std::int64_t>& tokens, std::int64_t start,
           const Numbers& noise, const PlainPatch& patch = {}) {
    std::vector<Line> rows;
    for (const std::int64_t token : tokens) {
      const auto first = model.embedding.begin() + token * kWidth;
      rows.emplace_back(first, first + kWidth);
    }
    for (std::size_t i = 0; i < noise.size(); ++i) {
      rows[static_cast<std::size_t>(start) + i / kWidth][i % kWidth] += static_cast<double>(noise[i]);
    }
    for (std::int64_t layer = 0; layer < kLayers; ++layer) step(model, layer, rows, patch);
    difference = model.read(rows.back());
  }

 private:
  void step(const ToyModel& model, std::int64_t layer, std::vector<Line>& rows, const PlainPatch& patch) {
    block.emplace_back();
    routed.emplace_back();
    shares.emplace_back();
    const std::vector<Line> before = rows;
    for (std::size_t at = 0; at < rows.size(); ++at) {
      Line& row = rows[at];
      for (std::size_t i = 0; i < kWidth; ++i) {
        double mean = 0;
        for (std::size_t seen = 0; seen <= at; ++seen) mean += before[seen][i];
        row[i] += mean / static_cast<double>(at + 1);
      }
      Line normed = row;
      for (double& own : normed) own *= 0.5;
      const Chosen chosen = model.route(layer, normed);
      Line output(kWidth);
      std::vector<Line> own(kExperts, Line(kWidth));
      for (std::size_t place = 0; place < kTopK; ++place) {
        const std::int64_t expert = chosen.expert[place];
        own[static_cast<std::size_t>(expert)] =
            model.experts[static_cast<std::size_t>(layer)].contribution(normed, expert, chosen.weight[place]);
        for (std::size_t i = 0; i < kWidth; ++i) output[i] += own[static_cast<std::size_t>(expert)][i];
      }
      block.back().push_back(output);
      routed.back().push_back(chosen);
      shares.back().push_back(own);
      const auto patched = patch.output.find(static_cast<std::int64_t>(at));
      if (layer == patch.layer && patched != patch.output.end()) output = patched->second;
      for (std::size_t i = 0; i < kWidth; ++i) row[i] += output[i];
    }
  }
};

/// The model with a pass's sites where the hooks of a scope would fire them.
class HookedModel {
 public:
  HookedModel(const ToyModel& model, const pass::Pass& pass) : model_(model), pass_(pass) {}
  /// A layer without its block's call, to see that it is found out; a block that is called twice.
  std::int64_t skipped_block = -1, doubled_block = -1;

  /// Logit differences (cases, final rows).
  std::vector<double> run() const {
    const auto& plan = pass_.layout().plan();
    const std::int64_t cases = plan.cases;
    Tensor rows = embedded();
    for (const pass::Hook* hook : at(-1, pass::Place::kEmbedding)) replace(hook, hooks::Step::kValue, rows);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      for (const auto* hook : at(layer, pass::Place::kLayerEntry)) replace(hook, hooks::Step::kValue, rows);
      const Tensor stream = mixed(rows);
      const Tensor normed = scaled(stream, 0.5F);
      for (const auto* hook : at(layer, pass::Place::kNorm))
        hook->site->fire(hooks::Step::kNorm, {stream, normed});
      rows = stream;
      const int calls = layer == skipped_block ? 0 : layer == doubled_block ? 2 : 1;
      for (int call = 0; call < calls; ++call) rows = ops::add(stream, block(layer, normed));
      for (const auto* hook : at(layer, pass::Place::kLayerExit)) {
        if (hook->joins) replace(hook, hooks::Step::kValue, rows);
      }
    }
    std::vector<double> found;
    const Numbers all = numbers(rows);
    const std::int64_t count = rows.size(1);
    for (std::int64_t index = 0; index < cases; ++index) {
      for (const std::int64_t row : pass_.final_rows()) {
        const Numbers own = line(all, index * count + row, kWidth);
        found.push_back(model_.read({own.begin(), own.end()}));
      }
    }
    return found;
  }

 private:
  std::vector<const pass::Hook*> at(std::int64_t layer, pass::Place place) const {
    std::vector<const pass::Hook*> found;
    for (const pass::Hook& hook : pass_.hooks()) {
      if (hook.layer == layer && hook.place == place) found.push_back(&hook);
    }
    return found;
  }

  static void replace(const pass::Hook* hook, hooks::Step step, Tensor& value) {
    const auto found = hook->site->fire(step, {value});
    if (!found.empty()) value = found[0];
  }

  Tensor embedded() const {
    Numbers found;
    const auto ids = pass_.input_ids();
    for (const std::int64_t id : ids) {
      const Numbers own = line(model_.embedding, id, kWidth);
      found.insert(found.end(), own.begin(), own.end());
    }
    return tensor(found, {pass_.layout().cases(), pass_.layout().start_rows(), kWidth});
  }

  static Tensor scaled(const Tensor& value, float factor) {
    Numbers all = numbers(value);
    for (float& own : all) own *= factor;
    return tensor(all, ops::shape_of(value));
  }

  /// Every row plus the mean of those that it sees.
  Tensor mixed(const Tensor& value) const {
    const auto& plan = pass_.layout().plan();
    const auto visible = tree::visibility(plan);
    const Numbers all = numbers(value);
    const std::int64_t count = value.size(1);
    Numbers found = all;
    for (std::int64_t at = 0; at < plan.cases * count; ++at) {
      const std::int64_t index = at / count, row = at % count;
      Line sum(kWidth);
      int seen = 0;
      for (std::int64_t other = 0; other < count; ++other) {
        if (!visible[static_cast<std::size_t>((index * plan.rows + row) * plan.rows + other)]) continue;
        ++seen;
        for (std::size_t i = 0; i < kWidth; ++i) {
          sum[i] += static_cast<double>(all[static_cast<std::size_t>((index * count + other) * kWidth) + i]);
        }
      }
      for (std::size_t i = 0; i < kWidth; ++i) {
        found[static_cast<std::size_t>(at * kWidth) + i] += static_cast<float>(sum[i] / seen);
      }
    }
    return tensor(found, ops::shape_of(value));
  }

  Tensor block(std::int64_t layer, const Tensor& normed) const {
    const auto& own = model_.experts[static_cast<std::size_t>(layer)];
    for (const auto* hook : at(layer, pass::Place::kBlockEntry)) {
      hook->site->fire(hooks::Step::kBlockEntry, {normed});
    }
    const std::int64_t rows = normed.size(0) * normed.size(1);
    const Tensor flat = ops::reshape(normed, {rows, kWidth});
    const Numbers all = numbers(flat);
    std::vector<std::int64_t> expert;
    Numbers weight, logits;
    for (std::int64_t row = 0; row < rows; ++row) {
      const Chosen chosen = model_.route(layer, own.row_of(all, row));
      expert.insert(expert.end(), chosen.expert.begin(), chosen.expert.end());
      weight.insert(weight.end(), chosen.weight.begin(), chosen.weight.end());
      logits.insert(logits.end(), chosen.logits.begin(), chosen.logits.end());
    }
    for (const auto* hook : at(layer, pass::Place::kRouter)) {
      hook->site->fire(hooks::Step::kValue, {tensor(logits, {rows, kExperts})});
    }
    std::vector<Tensor> call{flat, integers(expert, {rows, kTopK}), tensor(weight, {rows, kTopK})};
    const bool fused = pass_.facts(layer).fused_from > 0;
    for (const auto* hook : at(layer, pass::Place::kExpertsEntry)) {
      std::vector<Tensor> given = call;
      if (fused) given.insert(given.end(), {own.gate_up_tensor(), own.down_tensor()});
      const auto left = hook->site->fire(hooks::Step::kEnter, given);
      if (!left.empty()) call = left;
    }
    Tensor output = own.module(call[0], call[1], call[2]);
    for (const auto* hook : at(layer, pass::Place::kExpertsExit)) {
      const auto replaced = hook->site->fire(
          hooks::Step::kLeave, {call[0], call[1], call[2], output, own.gate_up_tensor(), own.down_tensor()});
      if (!replaced.empty()) output = replaced[0];
    }
    output = ops::reshape(output, ops::shape_of(normed));
    for (const auto* hook : at(layer, pass::Place::kBlockExit)) {
      hook->site->fire(hooks::Step::kBlockExit, {output});
    }
    for (const auto* hook : at(layer, pass::Place::kBlockOutput)) {
      replace(hook, hooks::Step::kValue, output);
    }
    return output;
  }

  const ToyModel& model_;
  const pass::Pass& pass_;
};

}  // namespace moetrace::testing
