#include "engine/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/text.h"

namespace csml {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

constexpr const char* kMetadataKey = "__metadata__";

struct DTypeName {
  DType dtype;
  const char* name;
};
constexpr DTypeName kDTypeNames[] = {{DType::f32, "F32"}, {DType::f64, "F64"}, {DType::bf16, "BF16"},
                                     {DType::f16, "F16"}, {DType::u8, "U8"},   {DType::i32, "I32"},
                                     {DType::i64, "I64"}};

const char* safetensors_name(DType dtype) {
  for (const DTypeName& entry : kDTypeNames)
    if (entry.dtype == dtype) return entry.name;
  throw Error(cat("dtype {} has no safetensors name", name_of(dtype)));
}

Shape shape_of(std::span<const int64_t> d) {
  switch (d.size()) {
    case 0:
      return Shape{};
    case 1:
      return Shape{d[0]};
    case 2:
      return Shape{d[0], d[1]};
    case 3:
      return Shape{d[0], d[1], d[2]};
    default:
      return Shape{d[0], d[1], d[2], d[3]};
  }
}

/// Bytes of an array, or nothing when they do not fit in 63 bits. Zero extents do not hide an overflow of the others.
std::optional<uint64_t> checked_bytes(std::span<const int64_t> extents, DType dtype) {
  int64_t bytes = static_cast<int64_t>(size_of(dtype));
  bool empty = false;
  for (int64_t extent : extents) {
    if (extent == 0)
      empty = true;
    else if (__builtin_mul_overflow(bytes, extent, &bytes))
      return std::nullopt;
  }
  return empty ? 0 : static_cast<uint64_t>(bytes);
}

/// Receives the JSON events of a header and accepts exactly the two levels that the format has. Working on events
/// instead of a document bounds memory and sees keys that come twice.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside)
      place_ = Place::top;
    else if (place_ == Place::top)
      place_ = name_ == kMetadataKey ? Place::metadata : Place::array;
    else
      fail("has an object where a value is expected");
    return true;
  }

  bool key(string_t& key) override {
    if (place_ == Place::top) {
      name_ = key;
      const bool first = key == kMetadataKey ? !std::exchange(metadata_seen_, true) : !header_.arrays.contains(key);
      if (!first) fail("is named twice in the header");
    } else if (place_ == Place::metadata) {
      if (header_.metadata.contains(key)) fail(cat("has the key {} twice", quote(key)));
    } else {
      bool* seen = key == "dtype" ? &dtype_seen_ : key == "shape" ? &shape_seen_ : nullptr;
      if (key == "data_offsets") seen = &offsets_seen_;
      if (!seen) fail(cat("has the unknown key {}", quote(key)));
      if (std::exchange(*seen, true)) fail(cat("has the key '{}' twice", key));
    }
    key_ = key;
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      header_.metadata[key_] = value;
      return true;
    }
    if (place_ != Place::array || key_ != "dtype") fail("has a text where none is expected");
    for (const DTypeName& entry : kDTypeNames)
      if (value == entry.name) {
        dtype_ = entry.dtype;
        return true;
      }
    fail(cat("has the dtype {}; supported are F32, F64, BF16, F16, U8, I32 and I64", quote(value)));
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::array || key_ == "dtype") fail("has a list where none is expected");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape) {
      if (extents_.size() == static_cast<size_t>(Shape::kMaxRank))
        fail(cat("has more than {} dimensions, which is not supported", Shape::kMaxRank));
      if (value > static_cast<uint64_t>(INT64_MAX)) fail("has an extent that does not fit in 63 bits");
      extents_.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets) {
      if (offsets_.size() == 2) fail("has more than two data_offsets");
      offsets_.push_back(value);
    } else {
      fail("has a number where none is expected");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::array;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::array) finish_array();
    place_ = place_ == Place::top ? Place::outside : Place::top;
    return true;
  }

  bool number_integer(number_integer_t) override { fail("has a negative number"); }
  bool number_float(number_float_t, const string_t&) override { fail("has a number that is not a 64-bit integer"); }
  bool null() override { fail("has the value null"); }
  bool boolean(bool) override { fail("has a truth value"); }
  bool binary(binary_t&) override { fail("has binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw Error(cat("{}: the header is not valid JSON at byte {}; the file is damaged or no safetensors file", file_,
                    position));
  }

 private:
  enum class Place { outside, top, metadata, array, shape, offsets };

  [[noreturn]] void fail(const std::string& what) const {
    if (place_ == Place::outside) throw Error(cat("{}: the header is no JSON object", file_));
    throw Error(cat("{}: array {} {}", file_, quote(name_), what));
  }

  void finish_array() {
    if (!dtype_seen_ || !shape_seen_ || !offsets_seen_) fail("lacks one of dtype, shape and data_offsets");
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) fail("has data_offsets that are no range");
    const std::optional<uint64_t> bytes = checked_bytes(extents_, dtype_);
    if (!bytes) fail("has a shape whose size overflows");
    if (*bytes != offsets_[1] - offsets_[0])
      fail(
          cat("has {} bytes between its data_offsets, its shape and dtype need {}", offsets_[1] - offsets_[0], *bytes));
    header_.arrays[name_] = {dtype_, shape_of(extents_), offsets_[0], static_cast<size_t>(*bytes)};
    dtype_seen_ = shape_seen_ = offsets_seen_ = false;
    extents_.clear();
    offsets_.clear();
  }

  const std::string& file_;
  SafetensorsHeader header_;
  Place place_ = Place::outside;
  std::string name_, key_;
  bool metadata_seen_ = false, dtype_seen_ = false, shape_seen_ = false, offsets_seen_ = false;
  DType dtype_ = DType::f32;
  std::vector<int64_t> extents_;
  std::vector<uint64_t> offsets_;
};

void read_at(const FileDescriptor& file, void* destination, size_t bytes, uint64_t offset,
             const std::filesystem::path& path) {
  char* next = static_cast<char*>(destination);
  while (bytes > 0) {
    const ssize_t n = ::pread(file.get(), next, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("read", path);
    CHECK(n > 0, "{}: the file became shorter while it was read", path.string());
    next += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes, const std::string& file) {
  CHECK(!json.empty() && json.front() == '{', "{}: the header does not start with '{{'; no safetensors file", file);
  // The JSON library takes a zero byte for the end of the text, which would let anything follow it.
  CHECK(json.find('\0') == std::string_view::npos, "{}: the header holds a zero byte; the file is damaged", file);
  HeaderReader reader(file);
  CHECK(nlohmann::json::sax_parse(json.begin(), json.end(), &reader), "{}: the header is not valid JSON", file);
  SafetensorsHeader header = reader.take();

  std::vector<std::pair<const ArrayInfo*, const std::string*>> by_offset;
  by_offset.reserve(header.arrays.size());
  for (const auto& [name, info] : header.arrays) by_offset.emplace_back(&info, &name);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->offset, a.first->bytes) < std::pair(b.first->offset, b.first->bytes);
  });
  uint64_t covered = 0;
  for (const auto& [info, name] : by_offset) {
    CHECK(info->offset == covered, "{}: array {} starts at byte {} of the data, the one before ends at byte {}", file,
          quote(*name), info->offset, covered);
    CHECK(info->bytes <= data_bytes - covered, "{}: array {} ends behind the end of the file, which is cut off", file,
          quote(*name));
    covered += info->bytes;
  }
  CHECK(covered == data_bytes, "{}: the arrays cover {} bytes of data, the file holds {}", file, covered, data_bytes);
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile opened;
  opened.path_ = path;
  opened.file_ = FileDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened.file_) throw_errno("open", path);
  struct stat status;
  if (::fstat(opened.file_.get(), &status) != 0) throw_errno("read", path);
  CHECK(S_ISREG(status.st_mode), "{}: not a regular file", path.string());
  const uint64_t file_bytes = static_cast<uint64_t>(status.st_size);
  uint64_t header_bytes = 0;
  CHECK(file_bytes >= sizeof header_bytes, "{}: {} bytes are too few for a safetensors file", path.string(),
        file_bytes);
  read_at(opened.file_, &header_bytes, sizeof header_bytes, 0, path);
  CHECK(header_bytes <= kMostHeaderBytes, "{}: a header of {} bytes is longer than {}; no safetensors file",
        path.string(), header_bytes, kMostHeaderBytes);
  CHECK(header_bytes <= file_bytes - sizeof header_bytes,
        "{}: the header ends behind the end of the file, which is cut off", path.string());
  std::string json(header_bytes, '\0');
  read_at(opened.file_, json.data(), json.size(), sizeof header_bytes, path);
  opened.data_start_ = sizeof header_bytes + header_bytes;
  opened.header_ = parse_safetensors_header(json, file_bytes - opened.data_start_, path.string());
  return opened;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, info] : header_.arrays) names.push_back(name);
  return names;
}

const ArrayInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = header_.arrays.find(name);
  CHECK(found != header_.arrays.end(), "{}: no array named {}", path_.string(), quote(name));
  return found->second;
}

void SafetensorsFile::read(const std::string& name, void* destination, size_t bytes) const {
  const ArrayInfo& array = info(name);
  CHECK(array.bytes == bytes, "{}: array {} has {} bytes ({} of {}), {} were asked for", path_.string(), quote(name),
        array.bytes, array.shape.text(), name_of(array.dtype), bytes);
  read_at(file_, destination, bytes, data_start_ + array.offset, path_);
}

NamedArray SafetensorsFile::read(const std::string& name) const {
  const ArrayInfo& array = info(name);
  NamedArray result{name, array.dtype, array.shape, std::vector<std::byte>(array.bytes)};
  read(name, result.data.data(), array.bytes);
  return result;
}

void SafetensorsFile::read_rows(const std::string& name, int64_t first, int64_t count, void* destination,
                                size_t bytes) const {
  const ArrayInfo& array = info(name);
  CHECK(array.shape.rank() > 0 && first >= 0 && count >= 0 && first <= array.shape[0] - count,
        "{}: array {} is {}, {} rows from row {} on were asked for", path_.string(), quote(name), array.shape.text(),
        count, first);
  const size_t row = static_cast<size_t>(array.shape.row_size()) * size_of(array.dtype);
  CHECK(bytes == row * static_cast<size_t>(count), "{}: {} rows of array {} have {} bytes, {} were asked for",
        path_.string(), count, quote(name), row * static_cast<size_t>(count), bytes);
  read_at(file_, destination, bytes, data_start_ + array.offset + row * static_cast<size_t>(first), path_);
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const HostArray> arrays,
                             const Metadata& metadata) {
  std::vector<const HostArray*> order;
  for (const HostArray& array : arrays) order.push_back(&array);
  std::sort(order.begin(), order.end(), [](const HostArray* a, const HostArray* b) {
    const size_t x = size_of(a->dtype), y = size_of(b->dtype);
    return x != y ? x > y : a->name < b->name;
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::map<std::string_view, bool> seen{{kMetadataKey, true}};
  std::vector<size_t> sizes;
  uint64_t offset = 0;
  std::string text;
  for (const HostArray* array : order) {
    CHECK(!std::exchange(seen[array->name], true), "{}: the name {} is used twice or reserved", path.string(),
          quote(array->name));
    std::vector<int64_t> extents;
    for (int i = 0; i < array->shape.rank(); ++i) extents.push_back(array->shape[i]);
    const std::optional<uint64_t> bytes = checked_bytes(extents, array->dtype);
    CHECK(bytes, "{}: array {} has a shape whose size overflows", path.string(), quote(array->name));
    CHECK(*bytes == 0 || array->data, "{}: array {} has no data", path.string(), quote(array->name));
    sizes.push_back(*bytes);
    // Appended without the linear search of operator[]; the names were checked above.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        array->name, nlohmann::ordered_json{{"dtype", safetensors_name(array->dtype)},
                                            {"shape", extents},
                                            {"data_offsets", {offset, offset + *bytes}}});
    offset += *bytes;
  }
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(cat("{}: an array's name or the metadata is not valid UTF-8", path.string()));
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  CHECK(text.size() <= SafetensorsFile::kMostHeaderBytes,
        "{}: {} arrays make a header of {} bytes, at most {} are allowed", path.string(), arrays.size(), text.size(),
        SafetensorsFile::kMostHeaderBytes);

  AtomicFile file(path);
  const uint64_t header_bytes = text.size();
  file.write(&header_bytes, sizeof header_bytes);
  file.write(text.data(), text.size());
  for (size_t i = 0; i < order.size(); ++i)
    if (sizes[i] > 0) file.write(order[i]->data, sizes[i]);
  return file.commit();
}

}  // namespace csml
