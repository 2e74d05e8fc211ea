#include "data/file_dataset.h"

#include <sys/stat.h>

#include <filesystem>

namespace csml {
namespace fs = std::filesystem;

FileDataset::FileDataset(const DatasetSpec& spec, const DecodeLimits& limits, std::string root,
                         std::vector<std::string> files, std::vector<int> labels, std::vector<std::string> class_names,
                         std::string note, std::map<std::string, int64_t> left_out)
    : EncodedDataset(spec, limits), root_(std::move(root)), files_(std::move(files)) {
  note_ = std::move(note);
  left_out_ = std::move(left_out);
  labels_ = std::move(labels);
  class_names_ = std::move(class_names);
}

std::string FileDataset::name(int64_t i) const {
  return (fs::path(root_) / files_[static_cast<size_t>(i)]).string();  // an absolute file replaces the root
}

uint64_t FileDataset::fingerprint() const {
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

void FileDataset::read(int64_t i, std::vector<uint8_t>& bytes) const { read_file(name(i), bytes, limits()); }

void FileDataset::select(const std::vector<int64_t>& keep) {
  for (size_t to = 0; to < keep.size(); ++to) {
    const auto from = static_cast<size_t>(keep[to]);
    labels_[to] = labels_[from];
    if (to != from) files_[to] = std::move(files_[from]);
  }
  labels_.resize(keep.size());
  files_.resize(keep.size());
}

}  // namespace csml
