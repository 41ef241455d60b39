#include "moetrace/pass/pass.h"

#include <algorithm>
#include <set>
#include <utility>

namespace moetrace::pass {

namespace {

std::vector<tree::CaseShape> shapes_of(const std::vector<Case>& cases) {
  std::vector<tree::CaseShape> shapes;
  shapes.reserve(cases.size());
  for (const Case& own : cases) shapes.push_back(own.shape);
  return shapes;
}

std::vector<Run> runs_between(const Job& job, std::int64_t begin, std::int64_t end) {
  const auto runs = runs_of(job);
  if (begin < 0 || begin > end || end > static_cast<std::int64_t>(runs.size())) {
    throw std::invalid_argument("runs " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                                std::to_string(runs.size()));
  }
  return {runs.begin() + begin, runs.begin() + end};
}

/// A fork for each run and draw, draws innermost.
std::vector<tree::Fork> forks_of(const std::vector<Run>& runs, std::int64_t draws) {
  std::vector<tree::Fork> forks;
  for (const Run& run : runs) {
    for (std::int64_t draw = 0; draw < draws; ++draw) forks.push_back(fork_of(run, draw));
  }
  return forks;
}

std::string at_layer(const char* what, std::int64_t layer) { return what + std::to_string(layer); }

}  // namespace

const char* module_of(Place place) noexcept {
  switch (place) {
    case Place::kEmbedding:
      return "embedding";
    case Place::kBlockEntry:
    case Place::kBlockExit:
    case Place::kBlockOutput:
      return "block";
    case Place::kRouting:
    case Place::kExpertsEntry:
    case Place::kExpertsExit:
      return "experts";
    case Place::kRouter:
      return "router";
    default:
      return "layer";
  }
}

Pass::Pass(Job job, std::vector<LayerFacts> layers, std::vector<Case> cases, std::int64_t begin,
           std::int64_t end, tree::Join join)
    : job_(std::move(job)),
      facts_(std::move(layers)),
      cases_(std::move(cases)),
      runs_(runs_between(job_, begin, end)),
      layout_(shapes_of(cases_), forks_of(runs_, job_.draws), job_.draws, job_.layers, join) {
  if (static_cast<std::int64_t>(facts_.size()) != job_.layers) {
    throw std::invalid_argument("facts of every layer are needed");
  }
  const bool joins = join != tree::Join::kStart;
  add_corruption();
  for (std::int64_t layer = 0; layer < job_.layers; ++layer) {
    const auto entry = joins ? add_entry(layer) : nullptr;
    if (facts(layer).experts) {
      add_routing(layer);  // before what spares the module rows
      add_experts(layer);
    }
    if (join == tree::Join::kAfterLayer && layout_.rows_behind(layer) > layout_.rows_inside(layer)) {
      add_exit(layer);
    } else if (joins) {
      add(Place::kLayerExit, layer, entry, false);
    }
    if (join != tree::Join::kAfterLayer) add_block(layer);
  }
}

void Pass::add(Place place, std::int64_t layer, std::shared_ptr<hooks::Site> site, bool must_fire) {
  hooks_.push_back({place, layer, std::move(site)});
  if (must_fire) must_fire_.push_back(hooks_.back());
}

void Pass::add_corruption() {
  const tree::Plan& plan = layout_.plan();
  const std::int64_t rows = layout_.start_rows();
  std::vector<std::int64_t> destination;
  std::vector<float> vectors;
  for (std::int64_t index = 0; index < layout_.cases(); ++index) {
    const Case& own = cases_[static_cast<std::size_t>(index)];
    const std::int64_t tokens = own.shape.subject_stop - own.shape.subject_start;
    const auto width = static_cast<std::int64_t>(own.vectors.size()) / (job_.draws * tokens);
    if (width * job_.draws * tokens != static_cast<std::int64_t>(own.vectors.size()) || width < 1) {
      throw std::invalid_argument("a corruption needs a vector for each draw and subject token");
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<std::size_t>(index * plan.rows + row);
      const std::int64_t position = plan.position[at], branch = plan.branch[at];
      if (branch < 0 || position < own.shape.subject_start || position >= own.shape.subject_stop) continue;
      destination.push_back(index * rows + row);
      const auto first = own.vectors.begin() + (branch * tokens + position - own.shape.subject_start) * width;
      vectors.insert(vectors.end(), first, first + width);
    }
  }
  add(Place::kEmbedding, -1,
      std::make_shared<hooks::ChangeRows>("embedding of subjects", layout_.cases() * rows,
                                          std::move(destination), std::move(vectors), job_.corruption),
      true);
}

std::shared_ptr<hooks::Site> Pass::add_entry(std::int64_t layer) {
  const std::int64_t before = layout_.rows_before(layer), inside = layout_.rows_inside(layer);
  auto site = std::make_shared<hooks::LayerEntry>(
      at_layer("forks that join at layer ", layer), layout_.cases(), layout_.start_rows(),
      inside > before ? layout_.sources(before, inside) : std::vector<std::int64_t>(),
      layout_.sources(0, inside), layout_.forks(inside));
  add(Place::kLayerEntry, layer, site, site->joins());
  return site;
}

std::vector<std::int64_t> Pass::runs_at(std::int64_t layer, bool of_experts) const {
  std::vector<std::int64_t> found;
  for (std::size_t run = 0; run < runs_.size(); ++run) {
    const Patch& patch = runs_[run].patch;
    const bool experts = patch.kind == Patch::Kind::kExperts;
    if (patch.layer == layer && experts == of_experts) found.push_back(static_cast<std::int64_t>(run));
  }
  return found;
}

std::vector<std::int64_t> Pass::checked_rows(std::int64_t layer) const {
  // Clean and noised final tokens, spread over the cases: rows that every figure rests on. Where that isn't
  // enough, for experts that few rows are routed to, the tokens before them, but no padding.
  const std::int64_t inside = layout_.rows_inside(layer), cases = layout_.cases();
  const std::int64_t wanted = std::max<std::int64_t>(1, std::min(cases, facts(layer).checked_rows / 2));
  std::vector<std::int64_t> rows;
  for (std::int64_t at = 0; at < wanted; ++at) {
    const std::int64_t index = at * cases / wanted;
    rows.push_back(index * inside + layout_.plan().clean_last());
    rows.push_back(index * inside + layout_.plan().noised_last(0));
  }
  const tree::Plan& plan = layout_.plan();
  const auto enough = static_cast<std::size_t>(std::max<std::int64_t>(2, facts(layer).checked_rows));
  for (std::int64_t row = plan.clean_last() - 1; row >= 0; --row) {
    for (std::int64_t index = 0; index < cases && rows.size() < enough; ++index) {
      const bool padding = plan.branch[static_cast<std::size_t>(index * plan.rows + row)] == tree::kPadding;
      if (!padding) rows.push_back(index * inside + row);
    }
  }
  return rows;
}

void Pass::add_routing(std::int64_t layer) {
  const tree::Plan& plan = layout_.plan();
  const std::int64_t inside = layout_.rows_inside(layer);
  std::vector<std::int64_t> destination, source;
  for (std::size_t run = 0; run < runs_.size(); ++run) {
    const Patch& patch = runs_[run].patch;
    if (!patch.fixed_routing || patch.layer >= layer) continue;
    for (std::int64_t index = 0; index < layout_.cases(); ++index) {
      for (std::int64_t draw = 0; draw < job_.draws; ++draw) {
        const std::int64_t own = fork(static_cast<std::int64_t>(run), draw);
        for (std::int64_t row = plan.fork_start(own); row <= plan.fork_last(own); ++row) {
          if (plan.branch[static_cast<std::size_t>(index * plan.rows + row)] == tree::kPadding) continue;
          destination.push_back(index * inside + row);
          source.push_back(index * inside + layout_.origin(index, row));
        }
      }
    }
  }
  if (destination.empty()) return;
  add(Place::kRouting, layer,
      std::make_shared<hooks::OverwriteRows>(at_layer("routing of layer ", layer), layout_.cases() * inside,
                                             std::move(destination), std::move(source)),
      true);
}

std::size_t Pass::group(std::int64_t layer, std::int64_t index, std::int64_t draw, std::int64_t place) const {
  const auto& places = places_.at(layer);
  const auto found = std::lower_bound(places.begin(), places.end(), place);
  const auto count = static_cast<std::int64_t>(places.size());
  return static_cast<std::size_t>((index * job_.draws + draw) * count + (found - places.begin()));
}

experts::ExpertsCall::Rows Pass::rows_of_experts(std::int64_t layer,
                                                 const std::vector<std::int64_t>& runs) const {
  const std::int64_t inside = layout_.rows_inside(layer), before = layout_.rows_before(layer);
  experts::ExpertsCall::Rows rows;
  rows.cases = layout_.cases();
  rows.inside = inside;
  rows.before = layout_.join() == tree::Join::kBeforeLayer ? before : inside;
  if (rows.before < inside) rows.sources = layout_.sources(0, inside);
  rows.checked = checked_rows(layer);
  if (runs.empty()) return rows;
  const auto& places = places_.at(layer);
  for (const std::int64_t place : places) rows.tokens.push_back(job_.tokens_of(place));
  rows.groups.resize(static_cast<std::size_t>(rows.cases * job_.draws) * places.size());
  for (std::int64_t index = 0; index < rows.cases; ++index) {
    const tree::CaseShape& shape = cases_[static_cast<std::size_t>(index)].shape;
    for (std::int64_t draw = 0; draw < job_.draws; ++draw) {
      std::map<std::int64_t, std::int64_t> item_at;  // by position
      for (const std::int64_t place : places) {
        for (const std::int64_t position : shape.positions(place)) item_at[position] = 0;
      }
      for (auto& [position, item] : item_at) {
        item = static_cast<std::int64_t>(rows.clean.size());
        std::int64_t row = -1;
        for (std::size_t patch = 0; patch < runs.size(); ++patch) {
          const Patch& own = runs_[static_cast<std::size_t>(runs[patch])].patch;
          const auto where = layout_.positions(index, fork(runs[patch], draw));
          if (!std::binary_search(where.begin(), where.end(), position)) continue;
          row = layout_.row_of(index, fork(runs[patch], draw), position);
          rows.written.push_back({item, static_cast<std::int64_t>(patch),
                                  group(layer, index, draw, own.place), index, row,
                                  own.origin == Origin::kNoise});
        }
        // No run of this part may be there; who is routed to there still says whose slots are whose.
        const bool bare = row < 0;
        rows.clean.push_back(index * inside +
                             (bare ? layout_.base_row(index, -1, position) : layout_.clean_twin(index, row)));
        rows.noised.push_back(index * inside + (bare ? layout_.base_row(index, draw, position)
                                                     : layout_.noised_twin(index, row)));
      }
      for (const std::int64_t place : places) {
        auto& items = rows.groups[group(layer, index, draw, place)];
        for (const std::int64_t position : shape.positions(place)) items.push_back(item_at.at(position));
      }
    }
  }
  rows.writes = layout_.join() != tree::Join::kAfterLayer;
  return rows;
}

experts::KnockOut Pass::knock_out_of(std::int64_t layer) const {
  experts::KnockOut how = *job_.knock_out;
  if (!how.named) return how;
  for (const Case& own : cases_) {  // in the order of the items
    std::set<std::int64_t> positions;
    for (const std::int64_t place : places_.at(layer)) {
      const auto& where = own.shape.positions(place);
      positions.insert(where.begin(), where.end());
    }
    const auto known = own.instead.find(layer);
    for (std::int64_t draw = 0; draw < job_.draws; ++draw) {
      for (const std::int64_t position : positions) {
        const bool there = known != own.instead.end() && known->second.contains(position);
        how.instead.push_back(there ? known->second.at(position) : experts::Replacements());
      }
    }
  }
  return how;
}

void Pass::add_experts(std::int64_t layer) {
  const auto runs = runs_at(layer, true);
  const std::int64_t inside = layout_.rows_inside(layer), before = layout_.rows_before(layer);
  if (!runs.empty()) {
    std::set<std::int64_t> places;
    for (const std::int64_t run : runs) places.insert(runs_[static_cast<std::size_t>(run)].patch.place);
    places_[layer] = {places.begin(), places.end()};
  }
  auto rows = rows_of_experts(layer, runs);
  std::vector<experts::ExpertPatch> patches;
  patches.reserve(runs.size());
  for (const std::int64_t run : runs) patches.push_back(runs_[static_cast<std::size_t>(run)].patch.experts);
  if (!rows.clean.empty()) {
    auto tap = std::make_shared<experts::RouterTap>(at_layer("router of layer ", layer), rows.cases * inside,
                                                    rows.clean, rows.noised);
    routers_[layer] = tap;
    add(Place::kRouter, layer, std::move(tap), false);
  }
  auto call = std::make_shared<experts::ExpertsCall>(at_layer("experts of layer ", layer), std::move(rows),
                                                     std::move(patches), facts(layer).fused_from,
                                                     facts(layer).layout.value_or(experts::Layout()));
  if (job_.knock_out && !runs.empty()) call->knock_out(knock_out_of(layer));
  calls_[layer] = call;
  if (call->patches()) routed_[layer] = call;
  const bool spared = facts(layer).fused_from > 0 || inside > before;
  if (!call->patches() && !spared) return;
  if (spared) add(Place::kExpertsEntry, layer, call, false);
  const bool must_fire = call->patches();
  add(Place::kExpertsExit, layer, std::move(call), must_fire);
}

void Pass::add_exit(std::int64_t layer) {
  const std::int64_t inside = layout_.rows_inside(layer), behind = layout_.rows_behind(layer);
  hooks::LayerExit::Rows rows;
  rows.cases = layout_.cases();
  rows.inside = inside;
  rows.sources = layout_.sources(inside, behind);
  const auto join = [&](std::int64_t index, std::int64_t row) {
    rows.patched.push_back(index * (behind - inside) + row - inside);
    rows.stream.push_back(index * inside + layout_.origin(index, row));
  };
  for (const std::int64_t run : runs_at(layer, false)) {
    for (std::int64_t index = 0; index < rows.cases; ++index) {
      for (std::int64_t draw = 0; draw < job_.draws; ++draw) {
        for (const std::int64_t position : layout_.positions(index, fork(run, draw))) {
          const std::int64_t row = layout_.row_of(index, fork(run, draw), position);
          join(index, row);
          rows.block.push_back(index * inside + block_source(index, run, row));
        }
      }
    }
  }
  const auto call = routed_.find(layer);
  if (call != routed_.end()) {  // in the order in which the experts give them
    for (const auto& own : call->second->written()) join(own.index, own.row);
  }
  auto site =
      std::make_shared<hooks::LayerExit>(at_layer("forks that join behind layer ", layer), std::move(rows),
                                         call == routed_.end() ? nullptr : call->second.get());
  add(Place::kNorm, layer, site, false);
  add(Place::kBlockEntry, layer, site, false);
  add(Place::kBlockExit, layer, site, false);
  add(Place::kLayerExit, layer, std::move(site), true);
  hooks_.back().joins = true;
}

/// The row whose block output a block patch gives a fork's row.
std::int64_t Pass::block_source(std::int64_t index, std::int64_t run, std::int64_t row) const {
  const Patch& patch = runs_[static_cast<std::size_t>(run)].patch;
  if (patch.kind == Patch::Kind::kNull) return layout_.origin(index, row);
  return patch.origin == Origin::kNoise ? layout_.noised_twin(index, row) : layout_.clean_twin(index, row);
}

void Pass::add_block(std::int64_t layer) {
  const std::int64_t inside = layout_.rows_inside(layer);
  std::vector<std::int64_t> destination, source;
  for (const std::int64_t run : runs_at(layer, false)) {
    for (std::int64_t index = 0; index < layout_.cases(); ++index) {
      for (std::int64_t draw = 0; draw < job_.draws; ++draw) {
        for (const std::int64_t position : layout_.positions(index, fork(run, draw))) {
          const std::int64_t row = layout_.row_of(index, fork(run, draw), position);
          destination.push_back(index * inside + row);
          source.push_back(index * inside + block_source(index, run, row));
        }
      }
    }
  }
  if (destination.empty()) return;
  add(Place::kBlockOutput, layer,
      std::make_shared<hooks::OverwriteRows>(at_layer("block of layer ", layer), layout_.cases() * inside,
                                             std::move(destination), std::move(source)),
      true);
}

std::int64_t Pass::fused_calls() const noexcept {
  std::int64_t calls = 0;
  for (const auto& [layer, call] : calls_) calls += call->fused_calls();
  return calls;
}

void Pass::reset() {
  for (const Hook& hook : hooks_) {
    if (hook.site) hook.site->reset();
  }
}

void Pass::scale_experts(std::int64_t layer, double factor) {
  const auto call = routed_.find(layer);
  if (call != routed_.end()) call->second->scale_by(factor);
}

}  // namespace moetrace::pass
