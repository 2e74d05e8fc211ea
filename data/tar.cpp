#include "data/tar.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "engine/file.h"
#include "kernels/check.h"

namespace csml {
namespace {

constexpr uint64_t kBlock = 512;
constexpr uint64_t kMostName = 4096, kMostRecords = 1 << 20;

using Block = std::array<uint8_t, kBlock>;

/// Text of a header's field, up to its first zero byte.
std::string text_at(const Block& block, size_t at, size_t length) {
  const char* text = reinterpret_cast<const char*>(block.data()) + at;
  return {text, ::strnlen(text, length)};
}

/// A number of a header: octal digits, or (GNU) 0x80 and big-endian bytes. Nothing for what is neither.
std::optional<uint64_t> number_at(const Block& block, size_t at, size_t length) {
  uint64_t value = 0;
  if (block[at] & 0x80) {
    if (block[at] != 0x80) return {};  // negative, or more than 64 bits
    for (size_t i = 1; i < length; ++i) {
      if (value >> 55) return {};
      value = value << 8 | block[at + i];
    }
    return value;
  }
  const std::string text = text_at(block, at, length);
  const size_t first = std::min(text.find_first_not_of(' '), text.size());
  const size_t end = std::min(text.find_first_of(' ', first), text.size());
  for (size_t i = first; i < end; ++i) {
    if (text[i] < '0' || text[i] > '7') return {};
    value = value * 8 + static_cast<uint64_t>(text[i] - '0');  // at most 12 digits
  }
  return value;
}

bool has_right_checksum(const Block& block) {
  uint64_t sum = 8 * ' ';  // the field itself counts as spaces
  for (size_t i = 0; i < kBlock; ++i)
    if (i < 148 || i >= 156) sum += block[i];
  const std::optional<uint64_t> stated = number_at(block, 148, 8);
  return stated && *stated == sum;
}

/// What an extended header says of the member that follows.
struct Extended {
  std::optional<std::string> name;
  std::optional<uint64_t> bytes;
};

class Reader {
 public:
  Reader(const FileDescriptor& file, const std::string& path) : path_(path), file_(file) {
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) throw_errno("read", path);
    if (!S_ISREG(status.st_mode)) throw Error(cat("{}: not a regular file", path));
    size_ = static_cast<uint64_t>(status.st_size);
  }

  TarList list() {
    TarList found;
    Extended extended;
    Block block;
    for (uint64_t at = 0; at < size_;) {
      if (size_ - at < kBlock) fail(at, "the file ends inside a header: truncated");
      read_file_part(file_, path_, at, block.data(), kBlock);
      if (std::all_of(block.begin(), block.end(), [](uint8_t b) { return b == 0; })) break;  // the end of the archive
      if (!has_right_checksum(block))
        fail(at, at == 0 ? "not a tar archive" : "a header with a wrong checksum: damaged");
      const char type = static_cast<char>(block[156]);
      const bool without_content = type >= '1' && type <= '6';  // links, devices, folders: whatever the size says
      std::optional<uint64_t> bytes = number_at(block, 124, 12);
      if (!bytes) fail(at, "a header without a size");
      const bool about_next = type == 'x' || type == 'L';
      if (extended.bytes && !about_next) bytes = extended.bytes;
      if (without_content) bytes = 0;
      const uint64_t content = at + kBlock;
      if (*bytes > size_ - content)
        fail(at, cat("a member of {} bytes ends behind the end of the file: truncated", *bytes));

      if (type == 'L') {
        extended.name = trimmed(read(content, *bytes, kMostName, "a name"));
      } else if (type == 'x') {
        read_records(at, read(content, *bytes, kMostRecords, "an extended header"), extended);
      } else if (type == 'S') {
        fail(at, "a sparse file, which is not supported");
      } else if (type != 'g' && type != 'K') {
        std::string name = extended.name.value_or(name_of(block));
        const bool regular = (type == '0' || type == '\0' || type == '7') && !name.ends_with('/');
        if (regular)
          found.files.push_back({std::move(name), content, *bytes});
        else
          ++found.others;
        extended = {};
      }
      at = content + std::min((*bytes + kBlock - 1) / kBlock * kBlock, size_ - content);
    }
    return found;
  }

 private:
  [[noreturn]] void fail(uint64_t at, const std::string& what) const {
    throw Error(cat("{}: at byte {}: {}", path_, at, what));
  }

  std::string read(uint64_t at, uint64_t bytes, uint64_t most, const char* what) const {
    if (bytes > most) fail(at, cat("{} of {} bytes is longer than {}", what, bytes, most));
    std::string text(bytes, '\0');
    read_file_part(file_, path_, at, text.data(), bytes);
    return text;
  }

  static std::string trimmed(const std::string& text) { return text.substr(0, text.find('\0')); }

  /// ustar splits long names in two fields.
  static std::string name_of(const Block& block) {
    const std::string name = text_at(block, 0, 100), prefix = text_at(block, 345, 155);
    const bool ustar = std::memcmp(block.data() + 257, "ustar\0", 6) == 0;  // GNU's own format has spaces there
    return ustar && !prefix.empty() ? prefix + "/" + name : name;
  }

  /// PAX records: "LENGTH KEY=VALUE\n", where LENGTH counts the whole record.
  void read_records(uint64_t at, std::string_view text, Extended& extended) const {
    while (!text.empty()) {
      size_t length = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
      const auto digits = static_cast<size_t>(end - text.data());
      if (error != std::errc() || length > text.size() || length < digits + 3 || text[digits] != ' ' ||
          text[length - 1] != '\n')
        fail(at, "an extended header that is damaged");
      const std::string_view record = text.substr(digits + 1, length - digits - 2);
      const size_t equals = record.find('=');
      if (equals == std::string_view::npos) fail(at, "an extended header that is damaged");
      const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key.starts_with("GNU.sparse")) fail(at, "a sparse file, which is not supported");
      if (key == "path") {
        if (value.size() > kMostName) fail(at, cat("a name of {} bytes is longer than {}", value.size(), kMostName));
        extended.name = trimmed(std::string(value));
      } else if (key == "size") {
        uint64_t bytes = 0;
        const auto result = std::from_chars(value.data(), value.data() + value.size(), bytes);
        if (result.ec != std::errc() || result.ptr != value.data() + value.size())
          fail(at, "an extended header whose size is no number");
        extended.bytes = bytes;
      }
      text.remove_prefix(length);
    }
  }

  const std::string& path_;
  const FileDescriptor& file_;
  uint64_t size_ = 0;
};

}  // namespace

TarList list_tar(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) throw_errno("open", path);
  return list_tar(file, path);
}

TarList list_tar(const FileDescriptor& file, const std::string& path) { return Reader(file, path).list(); }

}  // namespace csml
