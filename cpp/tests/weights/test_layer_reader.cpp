#include "moetrace/weights/layer_reader.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "temporary_file.h"

using namespace moetrace::weights;

namespace {

constexpr std::uint64_t kLayer = 3 * kBlock + 77;  // bytes of a layer
constexpr std::size_t kLayers = 7;

/// Two files; a layer has its first half in the second file, and its second half in the first.
struct Checkpoint {
  TemporaryFile first{kLayers * kLayer, 1};
  TemporaryFile second{kLayers * kLayer + 13, 2};

  static constexpr std::uint64_t kHalf = kLayer / 2;

  std::vector<std::string> files() const { return {first.path(), second.path()}; }
  static std::vector<LayerReader::Segments> layers() {
    std::vector<LayerReader::Segments> found;
    for (std::size_t layer = 0; layer < kLayers; ++layer)
      found.push_back(
          {{1, layer * kLayer + 13, kHalf, 0}, {0, layer * kLayer + kHalf, kLayer - kHalf, kHalf}});
    return found;
  }
  static bool is_layer(const Buffer& buffer, std::size_t layer) {
    for (std::uint64_t i = 0; i < kLayer; ++i) {
      const auto expected = i < kHalf ? TemporaryFile::byte_at(2, layer * kLayer + 13 + i)
                                      : TemporaryFile::byte_at(1, layer * kLayer + i);
      if (buffer.data()[i] != expected) return false;
    }
    return true;
  }
};

ReadOptions small_reads() { return {2 * kBlock, 0, true}; }

}  // namespace

TEST_CASE("a sweep sees every layer, and reads each once") {
  const Checkpoint checkpoint;
  LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
  reader.prefetch(0);
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    const auto buffer = reader.acquire(layer);
    if (layer + 1 < kLayers) reader.prefetch(layer + 1);
    CHECK(Checkpoint::is_layer(*buffer, layer));
    reader.release(layer);
  }
  CHECK(reader.bytes_read() >= kLayers * kLayer);
  CHECK(reader.bytes_read() <= kLayers * (kLayer + 4 * kBlock));
  CHECK(reader.seconds_waited() >= 0.0);
}

TEST_CASE("layers are read in any order, without being prefetched") {
  const Checkpoint checkpoint;
  LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
  for (const std::size_t layer : {5, 1, 1, 6, 0, 5}) {
    reader.prefetch((layer + 3) % kLayers);  // of no use to anyone
    CHECK(Checkpoint::is_layer(*reader.acquire(layer), layer));
    reader.release(layer);
  }
}

TEST_CASE("a layer that is still there isn't read again") {
  const Checkpoint checkpoint;
  LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
  for (int again = 0; again < 3; ++again) {
    reader.acquire(2);
    reader.release(2);
  }
  const auto once = reader.bytes_read();
  CHECK(once <= kLayer + 4 * kBlock);
  reader.stop();
  CHECK(Checkpoint::is_layer(*reader.acquire(2), 2));
  CHECK(reader.bytes_read() == 2 * once);
  reader.release(2);
}

TEST_CASE("a layer in use stays as it is") {
  const Checkpoint checkpoint;
  LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
  const auto first = reader.acquire(0);
  reader.acquire(0);
  reader.release(0);  // once more to go
  const auto second = reader.acquire(1);
  reader.prefetch(2);  // no buffer is free
  CHECK_THROWS_WITH_AS(reader.acquire(2),
                       "layer 2 can't be read: two other layers are in use, and there are two buffers",
                       std::logic_error);
  reader.stop();
  CHECK(Checkpoint::is_layer(*first, 0));
  CHECK(Checkpoint::is_layer(*second, 1));
  reader.release(0);
  reader.release(1);
  CHECK_THROWS_WITH_AS(reader.release(1), "layer 1 is released but not in use", std::logic_error);
  CHECK_THROWS_AS(reader.acquire(kLayers), std::out_of_range);
}

TEST_CASE("a buffer outlives the reader") {
  const Checkpoint checkpoint;
  std::shared_ptr<Buffer> buffer;
  {
    LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
    buffer = reader.acquire(3);
  }
  CHECK(Checkpoint::is_layer(*buffer, 3));
}

TEST_CASE("a file that is cut off is an error at the layers behind, and at them alone") {
  const Checkpoint checkpoint;
  checkpoint.first.cut(2 * kLayer);
  LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
  CHECK(Checkpoint::is_layer(*reader.acquire(1), 1));
  reader.release(1);
  reader.prefetch(2);  // fails in the background, and is said where the layer is asked for
  for (int again = 0; again < 2; ++again) {
    try {
      reader.acquire(2);
      FAIL("no error");
    } catch (const ReadError& failure) {
      const std::string what = failure.what();
      CHECK(failure.path() == checkpoint.first.path());
      CHECK(what.find("the file is cut off: it ends before byte") != std::string::npos);
    }
  }
  CHECK(Checkpoint::is_layer(*reader.acquire(0), 0));
  reader.release(0);
}

TEST_CASE("a file that is missing is an error when its layer is asked for") {
  const Checkpoint checkpoint;
  auto files = checkpoint.files();
  files[0] += ".gone";
  LayerReader reader(files, Checkpoint::layers(), small_reads());
  CHECK_THROWS_AS(reader.acquire(0), ReadError);
  CHECK_THROWS_AS(LayerReader({files[0]}, Checkpoint::layers()), std::invalid_argument);
}

TEST_CASE("the end comes in the middle of a read") {
  const TemporaryFile file(std::uint64_t{16} << 20, 3);
  for (int trial = 0; trial < 20; ++trial) {
    LayerReader reader({file.path()}, {{{0, 0, std::uint64_t{16} << 20, 0}}}, {kBlock, 0, false});
    reader.prefetch(0);
    if (trial % 2) reader.stop();
  }
}

TEST_CASE("a caller that asks to stop is let go, and the layer is there for the next one") {
  const TemporaryFile file(std::uint64_t{64} << 20, 3);
  LayerReader reader({file.path()}, {{{0, 0, std::uint64_t{64} << 20, 0}}}, {kBlock, 0, false});
  int asked = 0;
  try {
    reader.acquire(0, [&] { return ++asked > 0; });
    CHECK(asked == 0);  // the disk was faster
  } catch (const moetrace::stats::Interrupted&) {
    CHECK(asked == 1);
    reader.acquire(0);
  }
  reader.release(0);
}

TEST_CASE("several threads use one reader") {
  const Checkpoint checkpoint;
  LayerReader reader(checkpoint.files(), Checkpoint::layers(), small_reads());
  std::atomic<int> wrong{0};
  const auto use = [&](std::size_t start) {
    for (std::size_t i = 0; i < 200; ++i) {
      const std::size_t layer = (start + i * 3) % kLayers;
      reader.prefetch((layer + 1) % kLayers);
      if (!Checkpoint::is_layer(*reader.acquire(layer), layer)) ++wrong;
      reader.release(layer);
    }
  };
  std::thread other(use, 2);
  use(0);
  other.join();
  CHECK(wrong == 0);
}
