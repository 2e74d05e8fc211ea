// Uploads and readbacks of the CUDA backend on a stand-in for its runtime: right in every order that streams may work
// in, and without waiting for kernels.
#include "kernels/cuda/staging.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "tests/vendor/runtime.h"

using namespace csml;
using cuda::Staging;
namespace runtime = csml::test::runtime;

namespace {

using Bytes = std::vector<std::byte>;

/// Memory on a card that has room for so many blocks.
struct Card {
  int left = 1 << 20;
  Staging::Memory memory() {
    return {.allocate =
                [this](size_t bytes) {
                  if (left == 0) throw Error("out of memory");
                  --left;
                  return ::operator new(bytes);
                },
            .release =
                [this](void* data) {
                  ++left;
                  ::operator delete(data);
                }};
  }
};

constexpr size_t kPage = 4096;

/// Content that names its number and place: wrong, missing and stale pages are all seen.
void write_content(Bytes& bytes, uint32_t number) {
  for (size_t at = 0; at + 8 <= bytes.size(); at += at + kPage + 8 <= bytes.size() ? kPage : 8) {
    const auto page = static_cast<uint32_t>(at);
    std::memcpy(&bytes[at], &number, 4);
    std::memcpy(&bytes[at + 4], &page, 4);
  }
}
bool has_content(const std::byte* bytes, size_t size, uint32_t number) {
  for (size_t at = 0; at + 8 <= size; at += at + kPage + 8 <= size ? kPage : 8) {
    uint32_t found[2];
    std::memcpy(found, bytes + at, 8);
    if (found[0] != number || found[1] != static_cast<uint32_t>(at)) return false;
  }
  return true;
}

/// Uploads of many sizes into few places, each read by a kernel behind it: how many kernels saw other content.
int wrong_reads(uint64_t seed, int card_blocks) {
  runtime::seed(seed);
  std::mt19937_64 draw(seed);
  Card card{card_blocks};
  cuda::Stream stream;
  std::vector<Bytes> places(4, Bytes(3 * Staging::kBlockBytes + 1000));
  int wrong = 0, read = 0;
  {
    Staging staging(card.memory());
    Bytes source;
    constexpr int kUploads = 60;
    for (uint32_t number = 1; number <= kUploads; ++number) {
      const size_t most = draw() % 2 ? Staging::kSlotBytes : places[0].size();
      source.resize(8 * (1 + draw() % (most / 8)));
      write_content(source, number);
      std::byte* place = places[draw() % places.size()].data();
      staging.upload(stream.get(), place, source.data(), source.size());
      runtime::kernel(stream.get(), [&wrong, &read, place, size = source.size(), number] {
        ++read;
        wrong += !has_content(place, size, number);
      });
      std::fill(source.begin(), source.end(), std::byte{0xEE});  // the caller's memory is its own again
    }
    runtime::advance();
    CHECK(read == kUploads);
  }
  CHECK(card.left == card_blocks);
  return wrong;
}

}  // namespace

TEST_CASE("staging: every kernel sees what was uploaded before it, in whatever order the streams work") {
  for (uint64_t seed = 0; seed < 6; ++seed) CHECK(wrong_reads(seed, 1 << 20) == 0);
}

TEST_CASE("staging: so too with little or no memory on the card") {
  for (const int blocks : {0, 1, 2}) CHECK(wrong_reads(9, blocks) == 0);
}

TEST_CASE("staging: more small uploads than slots wait for their turn") {
  Card card;
  cuda::Stream stream;
  Staging staging(card.memory());
  std::vector<int> places(3 * Staging::kSlots);
  for (int i = 0; int& place : places) {
    staging.upload(stream.get(), &place, &i, sizeof i);
    ++i;
  }
  runtime::advance();
  for (int i = 0; const int place : places) CHECK(place == i++);
}

TEST_CASE("staging: the images of the next step travel while this one is computed") {
  Card card;
  cuda::Stream stream;
  Staging staging(card.memory());
  Bytes images(Staging::kCardBlocks * Staging::kBlockBytes), place(images.size());
  write_content(images, 7);
  runtime::endless_kernel(stream.get());
  const size_t before = runtime::bytes_uploaded();
  staging.upload(stream.get(), place.data(), images.data(), images.size());
  std::vector<float> rates(50);
  for (float& rate : rates) {
    const float value = 3;
    staging.upload(stream.get(), &rate, &value, sizeof value);
  }
  std::byte other;
  staging.upload_now(&other, images.data(), 1);
  CHECK(other == images[0]);
  runtime::advance();
  CHECK(runtime::bytes_uploaded() - before == images.size() + 1);
  CHECK(rates == std::vector<float>(50));  // not ahead of the kernel
  CHECK(!has_content(place.data(), place.size(), 7));
  CHECK_THROWS_AS(staging.upload(stream.get(), place.data(), images.data(), 9 * Staging::kBlockBytes), Error);
  runtime::release();
  runtime::advance();
  CHECK(has_content(place.data(), place.size(), 7));
  CHECK(rates == std::vector<float>(50, 3));
}

TEST_CASE("staging: a readback is of its moment and waits for nothing behind it") {
  cuda::Stream stream;
  cuda::PinnedReadback first(stream.get(), sizeof(int)), second(stream.get(), sizeof(int));
  int flag = 0;
  runtime::kernel(stream.get(), [&] { flag = 1; });
  first.start(&flag);
  runtime::kernel(stream.get(), [&] { flag = 2; });
  second.start(&flag);
  runtime::endless_kernel(stream.get());
  runtime::kernel(stream.get(), [&] { flag = 3; });
  CHECK(*static_cast<const int*>(second.wait()) == 2);
  CHECK(*static_cast<const int*>(first.wait()) == 1);
  second.start(&flag);
  CHECK_THROWS_AS(second.wait(), Error);  // behind the endless one
  runtime::release();
  CHECK(*static_cast<const int*>(second.wait()) == 3);
  cuda::PinnedReadback checked(stream.get(), sizeof(int), [] { throw Error("reported"); });
  checked.start(&flag);
  CHECK_THROWS_WITH_AS(checked.wait(), "reported", Error);
}

TEST_CASE("staging: a download waits for what is queued before it") {
  Card card;
  cuda::Stream stream;
  Staging staging(card.memory());
  Bytes place(10 * Staging::kBlockBytes + 16), got(place.size());
  runtime::kernel(stream.get(), [&] { write_content(place, 5); });
  staging.download(stream.get(), got.data(), place.data(), place.size());
  CHECK(has_content(got.data(), got.size(), 5));
}
