// A folder of image files: one subfolder per class, or flat and unlabelled.
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <set>

#include "data/file_dataset.h"
#include "data/kinds.h"
#include "engine/text.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

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

/// The directories that lead to one, and how often each was listed.
struct Walk {
  std::set<DirectoryId> above;
  std::map<DirectoryId, int> listed;
};

/// Collects the image files below `directory`, as paths relative to `root`. A link back to a directory that leads here is
/// not followed. Throws Error where links lead to one directory in more ways than people make: ten of them, one in the
/// other, make a thousand.
void collect(const fs::path& directory, const fs::path& relative, Walk& walk, std::vector<std::string>& files,
             LeftOut& left_out) {
  constexpr int kMostWays = 1000;
  const DirectoryId id = directory_id(directory);
  if (!walk.above.insert(id).second) return;
  if (++walk.listed[id] > kMostWays)
    throw Error(cat("{}: symbolic links lead to this folder in more than {} ways; remove them, or name it alone",
                    directory.string(), kMostWays));
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
        collect(entry.path(), below, walk, files, left_out);
    } else if (!entry.is_regular_file(error)) {
      ++left_out["neither file nor folder"];
    } else if (is_image_name(name)) {
      files.push_back(below.string());
    } else {
      ++left_out[reason_of(entry.path())];
    }
  }
  walk.above.erase(id);
}

std::vector<std::string> sorted_images(const fs::path& directory, const fs::path& relative, LeftOut& left_out) {
  Walk walk;
  std::vector<std::string> files;
  collect(directory, relative, walk, files, left_out);
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
    throw Error(cat("data set folder:{}: no image in it ({}){}", layout.images.string(), image_suffixes(),
                    left_out_text(left_out)));
  return std::make_unique<FileDataset>(spec, limits, layout.images.string(), std::move(files), std::move(labels),
                                       std::move(classes), std::move(note), std::move(left_out));
}

}  // namespace csml
