// Image files: a folder (one subfolder per class, or flat and unlabelled) or a list of paths with labels.
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "data/dataset_kinds.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

class FileDataset : public EncodedDataset {
 public:
  FileDataset(const DatasetSpec& spec, const DecodeLimits& limits, std::string root, std::vector<std::string> files,
              std::vector<int> labels, std::vector<std::string> class_names, std::string note = "",
              std::map<std::string, int64_t> left_out = {})
      : EncodedDataset(spec, limits), root_(std::move(root)), files_(std::move(files)) {
    note_ = std::move(note);
    left_out_ = std::move(left_out);
    labels_ = std::move(labels);
    class_names_ = std::move(class_names);
  }

  std::string name(int64_t i) const override {
    return (fs::path(root_) / files_[static_cast<size_t>(i)]).string();  // an absolute file replaces the root
  }

  uint64_t fingerprint() const override {
    uint64_t hash = 0;
    for (int64_t i = 0; i < size(); ++i) {
      const std::string& file = files_[static_cast<size_t>(i)];
      struct stat status {};
      const bool known = ::stat(name(i).c_str(), &status) == 0;
      const int64_t numbers[2] = {known ? static_cast<int64_t>(status.st_size) : -1, label(i)};
      hash = hash_bytes(file.data(), file.size(), hash);
      hash = hash_bytes(numbers, sizeof numbers, hash);
    }
    return hash;
  }

 protected:
  void read(int64_t i, std::vector<uint8_t>& bytes) const override { read_file(name(i), bytes, limits()); }

  void select(const std::vector<int64_t>& keep) override {
    for (size_t to = 0; to < keep.size(); ++to) {
      const auto from = static_cast<size_t>(keep[to]);
      labels_[to] = labels_[from];
      if (to != from) files_[to] = std::move(files_[from]);
    }
    labels_.resize(keep.size());
    files_.resize(keep.size());
  }

 private:
  std::string root_;
  std::vector<std::string> files_;  // relative to root_
};

using LeftOut = std::map<std::string, int64_t>;  // reason -> files or folders

/// Folders that archivers, file systems and file managers leave behind.
bool is_junk(const std::string& name) {
  static const std::set<std::string> junk{"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN",
                                          "System Volume Information"};
  return junk.contains(name);
}

/// Why a file that is no image is left out: by its suffix in lower case.
std::string reason_of(const fs::path& file) {
  std::string suffix = file.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffix.empty() ? "without suffix" : printable(suffix, 200);
}

bool hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

using DirectoryId = std::pair<dev_t, ino_t>;

DirectoryId directory_id(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Error(cat("{}: cannot be examined", path.string()));
  return {status.st_dev, status.st_ino};
}

/// Collects the image files below `directory`, as paths relative to `root`. `above` holds the directories that lead
/// here: a link back to one of them is not followed.
void collect(const fs::path& directory, const fs::path& relative, std::set<DirectoryId>& above,
             std::vector<std::string>& files, LeftOut& left_out) {
  const DirectoryId id = directory_id(directory);
  if (!above.insert(id).second) return;
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  if (error) throw Error(cat("{}: cannot be listed: {}", directory.string(), error.message()));
  for (const fs::directory_entry& entry : entries) {
    const std::string name = entry.path().filename().string();
    const fs::path below = relative / name;
    if (hidden(entry.path())) {
      ++left_out["hidden"];
    } else if (entry.is_directory(error)) {
      if (is_junk(name))
        ++left_out[cat("{}/", name)];
      else
        collect(entry.path(), below, above, files, left_out);
    } else if (!entry.is_regular_file(error)) {
      ++left_out["neither file nor folder"];
    } else if (is_image_name(name)) {
      files.push_back(below.string());
    } else {
      ++left_out[reason_of(entry.path())];
    }
  }
  above.erase(id);
}

std::vector<std::string> sorted_images(const fs::path& directory, const fs::path& relative, LeftOut& left_out) {
  std::set<DirectoryId> above;
  std::vector<std::string> files;
  collect(directory, relative, above, files, left_out);
  std::sort(files.begin(), files.end());
  return files;
}

/// Names of the subdirectories, sorted; hidden ones and junk left out.
std::vector<std::string> subdirectories(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  if (error) throw Error(cat("{}: cannot be listed: {}", directory.string(), error.message()));
  for (const fs::directory_entry& entry : entries)
    if (const std::string name = entry.path().filename().string();
        !hidden(entry.path()) && !is_junk(name) && entry.is_directory(error))
      names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

bool has_images(const fs::path& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error))
    if (!hidden(entry.path()) && is_image_name(entry.path().string()) && entry.is_regular_file(error)) return true;
  return false;
}

/// Counts the files that lie beside the class folders and are no images.
void count_beside(const fs::path& directory, LeftOut& left_out) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (hidden(entry.path()))
      ++left_out["hidden"];
    else if (is_junk(name))
      ++left_out[cat("{}/", name)];
    else if (!entry.is_directory(error))
      ++left_out[reason_of(entry.path())];
  }
}

/// Where the images of the asked split lie, and the folder whose subfolders name the classes.
struct Layout {
  fs::path images, classes;
};

/// train/ beside val/, validation/, valid/ or test/ are splits, whatever else lies there; train/ alone is one too. What
/// lies beside splits is no class.
Layout find_layout(const DatasetSpec& spec, LeftOut& left_out) {
  static const std::vector<std::string> kTest{"val", "validation", "valid", "test"};
  const fs::path root = spec.path;
  const std::vector<std::string> names = subdirectories(root);
  const auto has = [&](const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  const bool splits = has("train") && (names.size() == 1 || std::any_of(kTest.begin(), kTest.end(), has));
  if (!splits) {
    if (spec.test)
      throw Error(cat("data set folder:{}: split=test needs the folders train/ and val/ (or test/) in it", spec.path));
    return {root, root};
  }
  for (const std::string& name : names)
    if (name != "train" && std::find(kTest.begin(), kTest.end(), name) == kTest.end())
      ++left_out[cat("folder {} beside train/", printable(name, 200))];
  if (!spec.test) return {root / "train", root / "train"};
  for (const std::string& name : kTest)  // ImageNet's test images have no labels: val goes first
    if (has(name)) return {root / name, root / "train"};
  throw Error(cat("data set folder:{}: split=test, but there is no val/ or test/ beside train/", spec.path));
}

}  // namespace

std::unique_ptr<Dataset> open_folder(const DatasetSpec& spec, const DecodeLimits& limits) {
  std::error_code error;
  if (!fs::is_directory(spec.path, error)) throw Error(cat("data set folder:{}: no such directory", spec.path));
  LeftOut left_out;
  const Layout layout = find_layout(spec, left_out);
  std::vector<std::string> files, classes = subdirectories(layout.classes);
  std::vector<int> labels;
  std::string note;
  const bool flat = has_images(layout.images);
  if (flat || classes.empty()) {
    if (flat && !classes.empty()) note = "unlabelled, because images lie beside the subfolders";
    classes.clear();
    files = sorted_images(layout.images, {}, left_out);
    labels.assign(files.size(), -1);
  } else {
    count_beside(layout.images, left_out);
    for (const std::string& name : subdirectories(layout.images)) {
      const auto found = std::lower_bound(classes.begin(), classes.end(), name);
      if (found == classes.end() || *found != name)
        throw Error(cat("data set folder:{}: class {} of {} is not among the classes of {}", spec.path, name,
                        layout.images.filename().string(), layout.classes.string()));
      const std::vector<std::string> found_files = sorted_images(layout.images / name, name, left_out);
      files.insert(files.end(), found_files.begin(), found_files.end());
      labels.resize(files.size(), static_cast<int>(found - classes.begin()));
    }
  }
  if (files.empty())
    throw Error(cat("data set folder:{}: no image in it (jpg, jpeg, png, bmp, ppm, pgm){}", layout.images.string(),
                    left_out_text(left_out)));
  return std::make_unique<FileDataset>(spec, limits, layout.images.string(), std::move(files), std::move(labels),
                                       std::move(classes), std::move(note), std::move(left_out));
}

// One image a line: "PATH LABEL" with a whole number, or "PATH<tab>CLASS" with any name, or "PATH" alone. Relative
// paths start at the list's folder. Empty lines and lines that begin with # are skipped.
std::unique_ptr<Dataset> open_list(const DatasetSpec& spec, const DecodeLimits& limits) {
  std::vector<uint8_t> bytes;
  DecodeLimits text_limits;
  text_limits.file_bytes = size_t{1} << 30;
  try {
    read_file(spec.path, bytes, text_limits);
  } catch (const Error& e) { throw Error(cat("data set list:{}: {}", spec.path, e.what())); }
  std::vector<std::string> files, words;
  std::vector<int> lines;
  int line_number = 0;
  for (size_t at = 0; at < bytes.size();) {
    ++line_number;
    const auto end =
        static_cast<size_t>(std::find(bytes.begin() + static_cast<ptrdiff_t>(at), bytes.end(), '\n') - bytes.begin());
    std::string line(bytes.begin() + static_cast<ptrdiff_t>(at), bytes.begin() + static_cast<ptrdiff_t>(end));
    at = end + 1;
    while (!line.empty() && std::strchr(" \t\r", line.back())) line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    if (line.find('\0') != std::string::npos)
      throw Error(cat("data set list:{}: line {} is not text", spec.path, line_number));
    const size_t tab = line.rfind('\t'), cut = tab != std::string::npos ? tab : line.rfind(' ');
    std::string word = cut == std::string::npos ? "" : line.substr(cut + 1);
    const bool digits =
        !word.empty() && std::all_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (tab == std::string::npos && !digits) word.clear();
    if (!word.empty()) line.resize(cut);
    while (!line.empty() && std::strchr(" \t", line.back())) line.pop_back();
    if (line.empty()) throw Error(cat("data set list:{}: line {} has a label but no path", spec.path, line_number));
    if (!words.empty() && words.front().empty() != word.empty())
      throw Error(cat("data set list:{}: line {} {} a label, unlike the lines before", spec.path, line_number,
                      word.empty() ? "lacks" : "has"));
    files.push_back(std::move(line));
    words.push_back(std::move(word));
    lines.push_back(line_number);
  }
  if (files.empty()) throw Error(cat("data set list:{}: no image in it", spec.path));
  const std::string root = fs::absolute(spec.path).parent_path().string();
  std::error_code error;
  if (!fs::exists(fs::path(root) / files[0], error))
    throw Error(cat("data set list:{}: {} (line {}) does not exist; relative paths start at the list's folder",
                    spec.path, files[0], lines[0]));

  std::vector<int> labels(files.size(), -1);
  std::vector<std::string> classes;
  if (!words[0].empty()) {
    const bool numbers = std::all_of(words.begin(), words.end(), [](const std::string& word) {
      return std::all_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; });
    });
    if (numbers) {
      constexpr int kMaxClasses = 1'000'000;
      int count = 0;
      for (size_t i = 0; i < words.size(); ++i) {
        const auto result = std::from_chars(words[i].data(), words[i].data() + words[i].size(), labels[i]);
        if (result.ec != std::errc() || labels[i] >= kMaxClasses)
          throw Error(
              cat("data set list:{}: line {}: label {} is not below {}", spec.path, lines[i], words[i], kMaxClasses));
        count = std::max(count, labels[i] + 1);
      }
      for (int c = 0; c < count; ++c) classes.push_back(cat("{}", c));
    } else {
      std::map<std::string, int> number;
      for (const std::string& word : words) number[word] = 0;
      for (auto& [word, value] : number) {
        value = static_cast<int>(classes.size());
        classes.push_back(word);
      }
      for (size_t i = 0; i < words.size(); ++i) labels[i] = number[words[i]];
    }
  }
  return std::make_unique<FileDataset>(spec, limits, root, std::move(files), std::move(labels), std::move(classes));
}

}  // namespace csml
