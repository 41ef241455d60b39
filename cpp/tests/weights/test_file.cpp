#include "moetrace/weights/file.h"

#include <doctest/doctest.h>

#include "moetrace/weights/buffer.h"
#include "temporary_file.h"

using namespace moetrace::weights;

TEST_CASE("a file is read past the page cache and through it alike") {
  const TemporaryFile file(3 * kBlock + 100, 1);
  for (const bool direct : {true, false}) {
    File opened(file.path(), direct);
    const Buffer buffer(4 * kBlock);
    REQUIRE(opened.read(kBlock, 2 * kBlock, buffer.data()) == 2 * kBlock);
    for (std::uint64_t i = 0; i < 2 * kBlock; ++i)
      REQUIRE(buffer.data()[i] == TemporaryFile::byte_at(1, kBlock + i));
    CHECK(opened.read(2 * kBlock, 4 * kBlock, buffer.data()) == kBlock + 100);
    CHECK(buffer.data()[kBlock + 99] == TemporaryFile::byte_at(1, 3 * kBlock + 99));
    CHECK(opened.read(8 * kBlock, kBlock, buffer.data()) == 0);
  }
}

TEST_CASE("a file that isn't there is named") {
  CHECK_THROWS_WITH_AS(File("/nowhere/model.safetensors", true),
                       "/nowhere/model.safetensors: it can't be opened: No such file or directory",
                       ReadError);
}

#ifdef __linux__
TEST_CASE("a disk that fails is named with the place") {
  File memory("/proc/self/mem",
              false);  // nothing is mapped at the beginning: reading there is an error of input
  const Buffer buffer(kBlock);
  CHECK_THROWS_WITH_AS(memory.read(0, kBlock, buffer.data()),
                       "/proc/self/mem: Input/output error (reading at byte 0)", ReadError);
}
#endif

TEST_CASE("a buffer begins where direct reads can go") {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{5} << 20}) {
    const Buffer buffer(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % kBlock == 0);
    CHECK(buffer.size() >= bytes);
    buffer.data()[buffer.size() - 1] = std::byte{1};
  }
}
