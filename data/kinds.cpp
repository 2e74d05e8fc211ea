#include "data/kinds.h"

#include <algorithm>
#include <filesystem>

#include "data/pack.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

bool is_file(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

bool is_tar(const std::string& path) {
  return is_file(path) && (path.ends_with(".tar") || path.ends_with(".tar.gz") || path.ends_with(".tgz"));
}

bool is_pack(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::path(path) / kPackFile, error);
}

bool is_idx(const std::string& path) {
  std::error_code error;
  const fs::directory_iterator entries(path, error);
  return std::any_of(begin(entries), end(entries), [](const fs::directory_entry& entry) {
    return entry.path().filename().string().find("idx3-ubyte") != std::string::npos;
  });
}

bool is_cifar10(const std::string& path) {
  return !find_directory(path, "cifar-10-batches-bin", {"data_batch_1.bin", "test_batch.bin"}).empty();
}
bool is_cifar100(const std::string& path) {
  return !find_directory(path, "cifar-100-binary", {"train.bin", "test.bin"}).empty();
}
bool is_stl10(const std::string& path) {
  return !find_directory(path, "stl10_binary", {"train_X.bin", "test_X.bin", "unlabeled_X.bin"}).empty();
}
bool never(const std::string&) { return false; }
bool always(const std::string&) { return true; }

}  // namespace

const std::vector<DatasetKind>& dataset_kinds() {
  static const std::vector<DatasetKind> table = {
      {"cifar10", "the folder of CIFAR-10's binary files", is_cifar10, open_cifar},
      {"cifar100", "the folder of CIFAR-100's binary files", is_cifar100, open_cifar},
      {"stl10", "the folder of STL-10's binary files", is_stl10, open_stl10},
      {"idx", "a folder of MNIST-like files", is_idx, open_idx},
      {"tar", "a tar archive of images, or a pattern of them", is_tar, open_tar},
      {"list", "a text file of paths and labels, or a CSV file", is_file, open_list},
      {"pack", "a folder that csml pack wrote", is_pack, open_pack},
      {"synthetic", "the word shapes", never, open_synthetic},
      {"folder", "a folder of image files, one subfolder a class", always, open_folder}};
  return table;
}

std::string kind_names() {
  std::string text;
  for (const DatasetKind& kind : dataset_kinds()) text += cat("{}{}", text.empty() ? "" : ", ", kind.name);
  return text;
}

const DatasetKind* find_kind(const std::string& name) {
  for (const DatasetKind& kind : dataset_kinds())
    if (name == kind.name) return &kind;
  return nullptr;
}

const DatasetKind& recognise(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) throw Error(cat("data set {}: no such file or directory", path));
  for (const DatasetKind& kind : dataset_kinds())
    if (kind.recognises(path)) return kind;
  throw Error(cat("data set {}: neither a file nor a folder", path));
}

std::string find_directory(const std::string& path, const std::string& inner, const std::vector<std::string>& files) {
  std::error_code error;
  for (const fs::path& directory : {fs::path(path), fs::path(path) / inner})
    for (const std::string& file : files)
      if (fs::exists(directory / file, error)) return directory.string();
  return {};
}

}  // namespace csml
