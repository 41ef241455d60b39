#include <doctest/doctest.h>

#include <memory>

#include "../tensors.h"
#include "moetrace/hooks/site.h"

using namespace moetrace;
using namespace moetrace::hooks;
using namespace moetrace::testing;

namespace {

/// Gives twice what it is given, or fails.
class Doubled final : public Site {
 public:
  using Site::Site;
  bool fails = false;

 private:
  std::vector<Tensor> apply(Step /*step*/, const std::vector<Tensor>& given) override {
    count();
    if (fails) throw Failure(Trouble::kShape, name() + ": not this one");
    return {ops::add(given.at(0), given.at(0))};
  }
};

}  // namespace

TEST_CASE("a site is reached by its number for as long as it lives") {
  auto first = std::make_unique<Doubled>("first");
  const Doubled second("second");
  const std::int64_t number = first->number();
  CHECK(number != second.number());
  CHECK(&Site::of(number) == first.get());
  CHECK(&Site::of(second.number()) == &second);
  first.reset();
  CHECK_THROWS_AS(Site::of(number), std::out_of_range);
  CHECK(&Site::of(second.number()) == &second);
  CHECK(Doubled("third").number() != number);  // numbers aren't given twice
}

TEST_CASE("firings are counted, and a failure is kept until it is asked for") {
  Doubled site("own");
  const Numbers given = varied(4);
  const auto found = site.fire(Step::kValue, {tensor(given, {2, 2})});
  REQUIRE(found.size() == 1);
  for (std::size_t at = 0; at < 4; ++at) CHECK(numbers(found[0])[at] == 2 * given[at]);
  CHECK(site.fired() == 1);
  CHECK(!site.failure());
  site.fails = true;
  CHECK_THROWS_WITH_AS(site.fire(Step::kValue, {tensor(given, {2, 2})}), "own: not this one", Failure);
  REQUIRE(site.failure().has_value());
  CHECK(site.failure()->trouble() == Trouble::kShape);
  CHECK(site.fired() == 2);
  site.reset();
  CHECK(site.fired() == 0);
}

TEST_CASE("a hook's own refusal is kept too") {
  Doubled site("own");
  CHECK_THROWS_AS(site.refuse(Failure(Trouble::kCannotJoin, "no")), Failure);
  REQUIRE(site.failure().has_value());
  CHECK(site.failure()->trouble() == Trouble::kCannotJoin);
}
