#include <doctest/doctest.h>

#include <optional>

#include "../tensors.h"
#include "moetrace/hooks/layer_exit.h"

using namespace moetrace;
using namespace moetrace::hooks;
using namespace moetrace::testing;

namespace {

constexpr std::int64_t kCases = 2, kRows = 3, kWidth = 2;

/// One layer's call: the stream, what a norm makes of it, the block's output, and their sum.
struct Layer {
  Numbers stream = varied(kCases * kRows * kWidth), block = varied(kCases * kRows * kWidth, 0.9);
  Tensor given = whole(stream), normed = whole(varied(kCases * kRows * kWidth, 0.4));
  Tensor entered = normed;
  float share = 1.0F;  ///< of the block's output in the layer's

  static Tensor whole(const Numbers& values) { return tensor(values, {kCases, kRows, kWidth}); }
  Numbers sum() const {
    Numbers found = stream;
    for (std::size_t i = 0; i < found.size(); ++i) found[i] += share * block[i];
    return found;
  }
  Tensor run(LayerExit& site) const {
    site.fire(Step::kNorm, {whole(varied(12, 3.0)), whole(varied(12, 3.0))});  // a norm of something else
    site.fire(Step::kNorm, {given, normed});
    site.fire(Step::kBlockEntry, {entered});
    site.fire(Step::kBlockExit, {whole(block)});
    return site.fire(Step::kValue, {whole(sum())}).at(0);
  }
};

/// Two rows a case join: the first gets the block's output of row 0, the second is a copy of row 2.
LayerExit::Rows rows() {
  LayerExit::Rows found;
  found.cases = kCases;
  found.inside = kRows;
  found.sources = {1, 2, 1, 2};
  found.patched = {0, 2};
  found.stream = {1, kRows + 1};
  found.block = {0, kRows};
  return found;
}

class Experts final : public PatchedOutputs {
 public:
  Experts(std::vector<std::int64_t> watched, Tensor output, Tensor patched,
          std::optional<Tensor> added = std::nullopt, std::optional<double> scale = std::nullopt)
      : watched_(std::move(watched)),
        output_(std::move(output)),
        patched_(std::move(patched)),
        added_(std::move(added)),
        scale_(scale) {}
  const RowIndex& watched_rows() const override { return watched_; }
  const Tensor& watched_output() const override { return output_; }
  const Tensor& patched() const override { return patched_; }
  const Tensor& added() const override { return *added_; }
  std::optional<double> scale() const override { return scale_; }

 private:
  RowIndex watched_;
  Tensor output_, patched_;
  std::optional<Tensor> added_;
  std::optional<double> scale_;
};

std::optional<Trouble> trouble_of(const Layer& layer, LayerExit& site) {
  try {
    layer.run(site);
  } catch (const Failure& failure) {
    return failure.trouble();
  }
  return std::nullopt;
}

Numbers plus(Numbers a, const Numbers& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

}  // namespace

TEST_CASE("patched rows are the stream plus a block output of their own, the rest are copies") {
  const Layer layer;
  LayerExit site("forks that join behind layer 0", rows(), nullptr);
  const Tensor found = layer.run(site);
  CHECK(ops::shape_of(found) == Shape{kCases, kRows + 2, kWidth});
  for (std::int64_t at = 0; at < kCases; ++at) {
    for (std::int64_t row = 0; row < kRows; ++row) {
      CHECK(line(numbers(found), at * 5 + row, kWidth) == line(layer.sum(), at * kRows + row, kWidth));
    }
    const Numbers patched =
        plus(line(layer.stream, at * kRows + 1, kWidth), line(layer.block, at * kRows + 0, kWidth));
    CHECK(line(numbers(found), at * 5 + 3, kWidth) == patched);
    CHECK(line(numbers(found), at * 5 + 4, kWidth) == line(layer.sum(), at * kRows + 2, kWidth));
  }
  CHECK(site.fired() == 1);
}

TEST_CASE("block outputs of patched experts come from the experts") {
  const Layer layer;
  auto own = rows();
  own.patched.insert(own.patched.end(), {1, 3});  // the copies of row 2 are patched too
  own.stream.insert(own.stream.end(), {2, kRows + 2});
  Numbers watched = line(layer.block, 2, kWidth);
  const Numbers other = line(layer.block, kRows + 2, kWidth), given = varied(2 * kWidth, 2.2);
  watched.insert(watched.end(), other.begin(), other.end());
  const Experts experts({2, kRows + 2}, tensor(watched, {2, kWidth}), tensor(given, {2, kWidth}));
  LayerExit site("forks that join behind layer 0", own, &experts);
  const Numbers found = numbers(layer.run(site));
  for (std::int64_t at = 0; at < kCases; ++at) {
    CHECK(line(found, at * 5 + 3, kWidth) ==
          plus(line(layer.stream, at * kRows + 1, kWidth), line(layer.block, at * kRows, kWidth)));
    CHECK(line(found, at * 5 + 4, kWidth) ==
          plus(line(layer.stream, at * kRows + 2, kWidth), line(given, at, kWidth)));
  }
  watched[0] += 1.0F;  // a block that adds something to its experts' output
  const Experts more({2, kRows + 2}, tensor(watched, {2, kWidth}), tensor(given, {2, kWidth}));
  LayerExit refusing("forks that join behind layer 0", own, &more);
  CHECK(trouble_of(layer, refusing) == Trouble::kCannotJoin);
}

TEST_CASE(
    "beside shared experts a patched row has the block output that it goes on from, and what is added") {
  const Layer layer;
  auto own = rows();
  own.patched.insert(own.patched.end(), {1, 3});
  own.stream.insert(own.stream.end(), {2, kRows + 2});
  const Numbers routed = varied(2 * kWidth, 5.0), added = varied(2 * kWidth, 2.2);  // not the block's output
  const auto with_scale = [&](std::optional<double> scale) {
    return Experts({2, kRows + 2}, tensor(routed, {2, kWidth}), tensor(routed, {2, kWidth}),
                   tensor(added, {2, kWidth}), scale);
  };
  for (const float scale : {1.0F, 0.5F, -2.0F}) {
    const Experts experts = with_scale(static_cast<double>(scale));
    LayerExit site("forks that join behind layer 0", own, &experts);
    const Numbers found = numbers(layer.run(site));
    for (std::int64_t at = 0; at < kCases; ++at) {
      CHECK(line(found, at * 5 + 3, kWidth) ==
            plus(line(layer.stream, at * kRows + 1, kWidth), line(layer.block, at * kRows, kWidth)));
      Numbers part = line(added, at, kWidth);
      for (float& own_part : part) own_part *= scale;
      const Numbers expected = plus(line(layer.stream, at * kRows + 2, kWidth),
                                    plus(line(layer.block, at * kRows + 2, kWidth), part));
      for (std::size_t i = 0; i < kWidth; ++i) {
        CHECK(line(found, at * 5 + 4, kWidth)[i] == doctest::Approx(expected[i]));
      }
    }
  }
  const Experts unmeasured = with_scale(std::nullopt);
  LayerExit refusing("forks that join behind layer 0", own, &unmeasured);
  CHECK(trouble_of(layer, refusing) == Trouble::kCannotJoin);
}

TEST_CASE("a layer that is more than stream plus block is found out") {
  LayerExit site("forks that join behind layer 0", rows(), nullptr);
  Layer scaled;
  scaled.share = 0.5F;
  CHECK(trouble_of(scaled, site) == Trouble::kCannotJoin);
  Layer without_norm;
  without_norm.entered = Layer::whole(varied(12, 0.4));  // the same numbers elsewhere in memory
  CHECK(trouble_of(without_norm, site) == Trouble::kCannotJoin);
  site.reset();
  site.fire(Step::kBlockExit, {Layer::whole(varied(12))});
  CHECK_THROWS_WITH_AS(site.fire(Step::kBlockExit, {Layer::whole(varied(12))}),
                       "a block that is called repeatedly", Failure);
  site.reset();
  CHECK_THROWS_WITH_AS(site.fire(Step::kValue, {Layer::whole(varied(12))}),
                       "a layer whose block wasn't called", Failure);
  CHECK(!trouble_of(Layer(), site));  // and works again after it
}

TEST_CASE("a layer of several streams is joined before") {
  LayerExit site("forks that join behind layer 0", rows(), nullptr);
  const Layer layer;
  site.fire(Step::kNorm, {layer.given, layer.normed});
  site.fire(Step::kBlockEntry, {layer.entered});
  site.fire(Step::kBlockExit, {Layer::whole(layer.block)});
  CHECK_THROWS_AS(site.fire(Step::kValue, {tensor(varied(24), {kCases, kRows, 2, kWidth})}), Failure);
  CHECK(site.failure()->trouble() == Trouble::kCannotJoin);
}

TEST_CASE("another number of rows is a failure of shape") {
  LayerExit site("forks that join behind layer 0", rows(), nullptr);
  const Layer layer;
  layer.run(site);
  site.fire(Step::kNorm, {layer.given, layer.normed});
  site.fire(Step::kBlockEntry, {layer.entered});
  site.fire(Step::kBlockExit, {Layer::whole(layer.block)});
  try {
    site.fire(Step::kValue, {tensor(varied(8), {2, 2, 2})});
    FAIL("no failure");
  } catch (const Failure& failure) {
    CHECK(failure.trouble() == Trouble::kShape);
    CHECK(std::string(failure.what()).find("layer 0") != std::string::npos);
  }
  site.reset();
  CHECK_THROWS_AS(site.fire(Step::kBlockExit, {tensor(varied(8), {2, 2, 2})}), Failure);
  CHECK(site.failed_step() == Step::kBlockExit);
  CHECK(site.failure()->trouble() == Trouble::kShape);
  auto few = rows();
  few.stream.pop_back();
  CHECK_THROWS_AS(LayerExit("own", few, nullptr), std::invalid_argument);
}
