// The fuzz targets without libFuzzer: every seed, and of each a number of mutations that are the same in every run.
//   <target>_fuzz [--mutations=N] FOLDER|FILE…
// A failing input is written to fuzz-failure in the working folder.
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <csignal>
#include <iterator>
#include <vector>

#include "kernels/random.h"
#include "tests/fuzz/target.h"

namespace csml::fuzz {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;

constexpr size_t kMostBytes = size_t{1} << 16;

Bytes current;

void write_current() {
  std::ofstream("fuzz-failure", std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
  std::fputs("the input is in fuzz-failure\n", stderr);
}

void run(Bytes bytes) {
  current = std::move(bytes);
  // A block of exactly that size: a byte read behind the input is then outside of it.
  const Bytes exact(current.begin(), current.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

/// One to four edits: a bit, a byte of its own kind, a piece removed, doubled or taken from another seed.
Bytes mutated(const std::vector<Bytes>& seeds, size_t seed, uint32_t number) {
  Random random(number, Purpose::test, seed);
  Bytes bytes = seeds[seed];
  const auto below = [&](size_t n) { return static_cast<size_t>(random.below(static_cast<uint32_t>(n))); };
  for (size_t edits = 1 + below(4); edits > 0; --edits) {
    const size_t at = bytes.empty() ? 0 : below(bytes.size());
    const size_t piece = bytes.empty() ? 0 : 1 + below(std::min<size_t>(bytes.size() - at, 16));
    const auto from = bytes.begin() + static_cast<ptrdiff_t>(at), to = from + static_cast<ptrdiff_t>(piece);
    switch (below(6)) {
      case 0:
        if (!bytes.empty()) bytes[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1: {
        constexpr uint8_t kTelling[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '[', '\n', '9'};
        if (!bytes.empty()) bytes[at] = kTelling[below(std::size(kTelling))];
        break;
      }
      case 2:
        bytes.erase(from, to);
        break;
      case 3: {
        const Bytes copy(from, to);
        bytes.insert(from, copy.begin(), copy.end());
        break;
      }
      case 4:
        bytes.resize(at);
        break;
      default: {
        const Bytes& other = seeds[below(seeds.size())];
        if (other.empty()) break;
        const size_t begin = below(other.size()), count = 1 + below(std::min<size_t>(other.size() - begin, 64));
        bytes.insert(from, other.begin() + static_cast<ptrdiff_t>(begin),
                     other.begin() + static_cast<ptrdiff_t>(begin + count));
      }
    }
  }
  bytes.resize(std::min(bytes.size(), kMostBytes));
  return bytes;
}

std::vector<fs::path> seed_files(const fs::path& place) {
  if (!fs::is_directory(place)) return {place};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(place))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

int replay(int count, char** arguments) {
  uint32_t mutations = 0;
  std::vector<Bytes> seeds;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument.starts_with("--mutations=")) {
      mutations = static_cast<uint32_t>(std::stoul(argument.substr(argument.find('=') + 1)));
      continue;
    }
    for (const fs::path& path : seed_files(argument)) {
      std::ifstream file(path, std::ios::binary);
      seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      if (!file) broken(cat("{} can be read", path.string()));
    }
  }
  if (seeds.empty()) broken("there are seeds");
  run({});
  for (const Bytes& seed : seeds) run(seed);
  for (size_t s = 0; s < seeds.size(); ++s)
    for (uint32_t m = 0; m < mutations; ++m) run(mutated(seeds, s, m));
  std::printf("%zu seeds, %zu mutations\n", seeds.size(), seeds.size() * mutations);
  return 0;
}

}  // namespace
}  // namespace csml::fuzz

int main(int count, char** arguments) {
  __sanitizer_set_death_callback(csml::fuzz::write_current);
  std::signal(SIGABRT, [](int) {
    csml::fuzz::write_current();
    std::_Exit(1);
  });
  return csml::fuzz::replay(count, arguments);
}
