#include <doctest/doctest.h>

#include <string>

#include "../tensors.h"
#include "moetrace/hooks/row_sites.h"

using namespace moetrace;
using namespace moetrace::hooks;
using namespace moetrace::testing;

namespace {

constexpr std::int64_t kRows = 6, kWidth = 3;

Trouble trouble_of(Site& site, const Tensor& value) {
  try {
    site.fire(Step::kValue, {value});
  } catch (const Failure& failure) {
    CHECK(std::string(failure.what()).find(site.name()) == 0);
    return failure.trouble();
  }
  FAIL("no failure");
  return Trouble::kCannotJoin;
}

}  // namespace

TEST_CASE("rows are overwritten by other rows as they were given") {
  const Numbers given = varied(kRows * kWidth);
  // 1 and 0 change places: what is read isn't what was just written.
  OverwriteRows site("block of layer 3", kRows, {1, 0, 5}, {0, 1, 2});
  Numbers expected = given;
  for (std::size_t i = 0; i < kWidth; ++i) {
    expected[1 * kWidth + i] = given[0 * kWidth + i];
    expected[0 * kWidth + i] = given[1 * kWidth + i];
    expected[5 * kWidth + i] = given[2 * kWidth + i];
  }
  for (const Shape& shape : {Shape{2, 3, kWidth}, Shape{kRows, kWidth}}) {
    const Tensor value = tensor(given, shape);
    const auto found = site.fire(Step::kValue, {value});
    REQUIRE(found.size() == 1);
    CHECK(ops::shape_of(found[0]) == shape);
    CHECK(numbers(found[0]) == expected);
    CHECK(numbers(value) == given);  // the model's own tensor isn't written to
  }
  CHECK(site.fired() == 2);
}

TEST_CASE("noise is added to the rows of subjects alone") {
  const Numbers given = varied(kRows * kWidth), noise = varied(2 * kWidth, 0.3);
  ChangeRows site("embedding noise", kRows, {4, 1}, noise, RowChange::kAdded);
  Numbers expected = given;
  for (std::size_t i = 0; i < kWidth; ++i) {
    expected[4 * kWidth + i] += noise[i];
    expected[1 * kWidth + i] += noise[kWidth + i];
  }
  const Tensor value = tensor(given, {2, 3, kWidth});
  CHECK(numbers(site.fire(Step::kValue, {value})[0]) == expected);
  CHECK(numbers(value) == given);
}

TEST_CASE("noise is added in float32 and rounded once") {
  // Rounded to bfloat16 first, 1 + 2^-9 would be 1, and the sum 0.
  ChangeRows site("embedding noise", 1, {0}, {1.0F + 0x1p-9F}, RowChange::kAdded);
  const auto found = site.fire(Step::kValue, {ops::to(tensor({-1.0F}, {1, 1}), ScalarType::BFloat16)});
  CHECK((found[0].scalar_type() == ScalarType::BFloat16));
  CHECK(numbers(found[0]) == Numbers{0x1p-9F});
}

TEST_CASE("rows are replaced in the precision of the value") {
  const Numbers given = varied(kRows * kWidth), vectors = varied(2 * kWidth, 0.3);
  ChangeRows site("embedding of subjects", kRows, {4, 1}, vectors, RowChange::kReplaced);
  Numbers expected = given;
  for (std::size_t i = 0; i < kWidth; ++i) {
    expected[4 * kWidth + i] = vectors[i];
    expected[1 * kWidth + i] = vectors[kWidth + i];
  }
  const Tensor value = tensor(given, {2, 3, kWidth});
  CHECK(numbers(site.fire(Step::kValue, {value})[0]) == expected);
  CHECK(numbers(value) == given);
  ChangeRows half("embedding of subjects", 1, {0}, {1.0F + 0x1p-9F}, RowChange::kReplaced);
  const auto found = half.fire(Step::kValue, {ops::to(tensor({-1.0F}, {1, 1}), ScalarType::BFloat16)});
  CHECK((found[0].scalar_type() == ScalarType::BFloat16));
  CHECK(numbers(found[0]) == Numbers{1.0F});
}

TEST_CASE("another shape than was planned is a failure that names the site") {
  OverwriteRows write("block of layer 3", kRows, {1}, {0});
  CHECK(trouble_of(write, tensor(varied(15), {5, kWidth})) == Trouble::kShape);
  CHECK(trouble_of(write, tensor(varied(6), {6})) == Trouble::kShape);
  CHECK(trouble_of(write, tensor({}, {6, 0})) == Trouble::kShape);
  ChangeRows add("embedding noise", kRows, {1}, varied(kWidth), RowChange::kAdded);
  CHECK(trouble_of(add, tensor(varied(15), {1, 5, kWidth})) == Trouble::kShape);
  CHECK(trouble_of(add, tensor(varied(12), {kRows, 2})) == Trouble::kShape);
}

TEST_CASE("sites that could never fire rightly aren't made") {
  CHECK_THROWS_AS(OverwriteRows("own", kRows, {1, 2}, {0}), std::invalid_argument);
  CHECK_THROWS_AS(ChangeRows("own", kRows, {1, 2}, varied(3), RowChange::kAdded), std::invalid_argument);
  CHECK_THROWS_AS(ChangeRows("own", kRows, {}, {}, RowChange::kReplaced), std::invalid_argument);
}

TEST_CASE("rows of each case, from lines of its own or from one that all share") {
  const std::vector<std::int64_t> source{2, 0, 1, 1};
  const Numbers given = varied(2 * 3 * kWidth);
  const auto own = rows_of_cases(tensor(given, {2, 3, kWidth}), 2, source);
  const auto shared = rows_of_cases(tensor(line(given, 0, 3 * kWidth), {1, 3, kWidth}), 2, source);
  CHECK(ops::shape_of(own) == Shape{2, 2, kWidth});
  CHECK(ops::shape_of(shared) == Shape{2, 2, kWidth});
  for (std::int64_t at = 0; at < 4; ++at) {
    const std::int64_t row = source[static_cast<std::size_t>(at)];
    CHECK(line(numbers(own), at, kWidth) == line(given, at / 2 * 3 + row, kWidth));
    CHECK(line(numbers(shared), at, kWidth) == line(given, row, kWidth));
  }
}
