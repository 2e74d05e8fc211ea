// A list of image files.
//
// Text: one image a line, "PATH LABEL" with a whole number, "PATH<tab>CLASS" with any name, or "PATH" alone. Empty lines
// and lines that begin with # are skipped.
// CSV (the list's name ends in .csv): a first row that names the columns, of which path (or file, filename, image) and
// label (or class, category, target) count; or rows of path and label, or of path alone. Quotes as in RFC 4180.
// Relative paths start at the list's folder. A byte-order mark is skipped.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>

#include "data/file_dataset.h"
#include "data/kinds.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

/// The rows of a list: paths, and class names or nothing.
struct Rows {
  std::vector<std::string> files, words;
  std::vector<int> lines;  // of the list, from 1

  void add(std::string file, std::string word, int line, const std::string& list) {
    if (file.empty()) throw Error(cat("data set list:{}: line {} has a label but no path", list, line));
    if (!words.empty() && words.front().empty() != word.empty())
      throw Error(cat("data set list:{}: line {} {} a label, unlike the lines before", list, line,
                      word.empty() ? "lacks" : "has"));
    files.push_back(std::move(file));
    words.push_back(std::move(word));
    lines.push_back(line);
  }
};

bool is_number(const std::string& word) {
  return !word.empty() && std::all_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; });
}

void trim_end(std::string& text, const char* what) {
  while (!text.empty() && std::strchr(what, text.back())) text.pop_back();
}

/// One line of text, taken apart.
void add_text_line(std::string line, int number, const std::string& list, Rows& rows) {
  trim_end(line, " \t\r");
  if (line.empty() || line[0] == '#') return;
  const size_t tab = line.rfind('\t'), cut = tab != std::string::npos ? tab : line.rfind(' ');
  std::string word = cut == std::string::npos ? "" : line.substr(cut + 1);
  if (tab == std::string::npos && !is_number(word)) word.clear();
  if (!word.empty()) line.resize(cut);
  trim_end(line, " \t");
  rows.add(std::move(line), std::move(word), number, list);
}

/// The fields of a line of comma-separated values. Throws Error for a quote that does not end on its line.
std::vector<std::string> fields_of(const std::string& line, int number, const std::string& list) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const bool doubled = quoted && line[i] == '"' && i + 1 < line.size() && line[i + 1] == '"';
    if (doubled)
      fields.back() += line[i++];
    else if (line[i] == '"')
      quoted = !quoted;
    else if (line[i] == ',' && !quoted)
      fields.emplace_back();
    else
      fields.back() += line[i];
  }
  if (quoted) throw Error(cat("data set list:{}: line {}: a quote does not end on its line", list, number));
  return fields;
}

/// Where a CSV file has its paths and labels.
struct Columns {
  size_t path = 0, label = 1, count = 0;
  bool labelled = true;
};

size_t column_named(const std::vector<std::string>& row, std::initializer_list<const char*> names) {
  for (size_t i = 0; i < row.size(); ++i) {
    std::string name = row[i];
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    if (std::find(names.begin(), names.end(), name) != names.end()) return i;
  }
  return row.size();
}

/// Whether the first row names columns; then they are taken from it.
bool read_header(const std::vector<std::string>& row, const std::string& list, Columns& columns) {
  columns = {0, 1, row.size(), row.size() > 1};
  if (std::any_of(row.begin(), row.end(), is_image_name)) return false;
  columns.path = column_named(row, {"path", "file", "filename", "file_name", "filepath", "image", "image_path"});
  if (columns.path == row.size())
    throw Error(cat("data set list:{}: no column called path in its first line (it has {})", list,
                    quote(row.empty() ? "" : row[0])));
  columns.label = column_named(row, {"label", "class", "category", "target", "class_name"});
  columns.labelled = columns.label < row.size();
  return true;
}

void add_csv_line(std::string line, int number, const std::string& list, Columns& columns, Rows& rows) {
  trim_end(line, "\r");
  if (line.empty()) return;
  std::vector<std::string> row = fields_of(line, number, list);
  if (columns.count == 0 && read_header(row, list, columns)) return;
  if (row.size() != columns.count)
    throw Error(
        cat("data set list:{}: line {} has {} fields, the first has {}", list, number, row.size(), columns.count));
  rows.add(std::move(row[columns.path]), columns.labelled ? std::move(row[columns.label]) : "", number, list);
}

/// What a file that is no text is, as far as its first bytes tell.
std::string other_kind(const std::vector<uint8_t>& bytes) {
  struct Known {
    std::string_view magic, advice;
  };
  static const Known kKnown[] = {
      {"PK\3\4", "a ZIP archive (.zip, .npz): unpack it, and save arrays as image files"},
      {"PAR1", "a Parquet file: save its images as files, or as a tar archive with the webdataset library"},
      {"\x89HDF", "an HDF5 file: save its images as files"},
      {"\x93NUMPY", "a NumPy array: save its images as files"},
      {"\x1F\x8B", "a gzip file: name a tar archive .tar.gz, and gunzip a list"},
      {"\x28\xB5\x2F\xFD", "a zstd file: unpack it"},
      {"7z\xBC\xAF", "a 7z archive: unpack it"},
      {"\xFF\xD8\xFF", "a JPEG image: name the folder that it lies in"},
      {"\x89PNG", "a PNG image: name the folder that it lies in"}};
  for (const Known& known : kKnown)
    if (bytes.size() >= known.magic.size() && std::memcmp(bytes.data(), known.magic.data(), known.magic.size()) == 0)
      return cat(" but {}", known.advice);
  return "";
}

Rows read_rows(const std::string& path) {
  std::vector<uint8_t> bytes;
  DecodeLimits text_limits;
  text_limits.file_bytes = size_t{1} << 30;
  try {
    read_file(path, bytes, text_limits);
  } catch (const Error& e) { throw Error(cat("data set list:{}: {}", path, e.what())); }
  const bool csv = path.size() > 4 && path.ends_with(".csv");
  Rows rows;
  Columns columns;
  int number = 0;
  const bool marked = bytes.size() >= 3 && bytes[0] == 0xEF && bytes[1] == 0xBB && bytes[2] == 0xBF;
  for (size_t at = marked ? 3 : 0; at < bytes.size();) {
    ++number;
    const auto begin = bytes.begin() + static_cast<ptrdiff_t>(at), end = std::find(begin, bytes.end(), '\n');
    std::string line(begin, end);
    at = static_cast<size_t>(end - bytes.begin()) + 1;
    if (const std::string kind = number == 1 ? other_kind(bytes) : ""; !kind.empty())
      throw Error(cat("data set list:{}: not a list of images,{}", path, kind));
    if (line.find('\0') != std::string::npos) throw Error(cat("data set list:{}: line {} is not text", path, number));
    if (csv)
      add_csv_line(std::move(line), number, path, columns, rows);
    else
      add_text_line(std::move(line), number, path, rows);
  }
  if (rows.files.empty()) throw Error(cat("data set list:{}: no image in it", path));
  return rows;
}

/// Labels that are numbers are the classes' numbers.
void number_classes(const Rows& rows, const std::string& list, std::vector<int>& labels,
                    std::vector<std::string>& classes) {
  constexpr int kMaxClasses = 1'000'000;
  int count = 0;
  for (size_t i = 0; i < rows.words.size(); ++i) {
    const std::string& word = rows.words[i];
    const auto result = std::from_chars(word.data(), word.data() + word.size(), labels[i]);
    if (result.ec != std::errc() || labels[i] >= kMaxClasses)
      throw Error(cat("data set list:{}: line {}: label {} is not below {}", list, rows.lines[i], word, kMaxClasses));
    count = std::max(count, labels[i] + 1);
  }
  for (int c = 0; c < count; ++c) classes.push_back(cat("{}", c));
}

/// Labels that are names are numbered in the order of their names.
void name_classes(const Rows& rows, std::vector<int>& labels, std::vector<std::string>& classes) {
  std::map<std::string, int> number;
  for (const std::string& word : rows.words) number[word] = 0;
  for (auto& [word, value] : number) {
    value = static_cast<int>(classes.size());
    classes.push_back(word);
  }
  for (size_t i = 0; i < rows.words.size(); ++i) labels[i] = number[rows.words[i]];
}

}  // namespace

std::unique_ptr<Dataset> open_list(const DatasetSpec& spec, const DecodeLimits& limits) {
  Rows rows = read_rows(spec.path);
  const std::string root = fs::absolute(spec.path).parent_path().string();
  std::error_code error;
  if (!fs::exists(fs::path(root) / rows.files[0], error))
    throw Error(cat("data set list:{}: {} (line {}) does not exist; relative paths start at the list's folder",
                    spec.path, rows.files[0], rows.lines[0]));
  std::vector<int> labels(rows.files.size(), -1);
  std::vector<std::string> classes;
  if (!rows.words[0].empty()) {
    if (std::all_of(rows.words.begin(), rows.words.end(), is_number))
      number_classes(rows, spec.path, labels, classes);
    else
      name_classes(rows, labels, classes);
  }
  return std::make_unique<FileDataset>(spec, limits, root, std::move(rows.files), std::move(labels),
                                       std::move(classes));
}

}  // namespace csml
