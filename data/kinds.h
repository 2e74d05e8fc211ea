// Private to data/: the kinds of data sets. A kind is one row of the table in kinds.cpp, one file that opens it, and a
// fuzz target for its parser.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/spec.h"

namespace csml {

struct DatasetKind {
  const char* name;  // KIND of a SPEC
  const char* path;  // what PATH is, for people
  /// Whether an existing PATH without KIND is of this kind. The rows are asked in their order; the last one takes all.
  bool (*recognises)(const std::string& path);
  std::unique_ptr<Dataset> (*open)(const DatasetSpec& spec, const DecodeLimits& limits);
};

const std::vector<DatasetKind>& dataset_kinds();
/// "cifar10, cifar100, …".
std::string kind_names();
/// The row of that name, or nullptr.
const DatasetKind* find_kind(const std::string& name);
/// The kind of what a path without KIND names. Throws Error where nothing is there.
const DatasetKind& recognise(const std::string& path);

std::unique_ptr<Dataset> open_cifar(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_folder(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_idx(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_list(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_pack(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_stl10(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_synthetic(const DatasetSpec& spec, const DecodeLimits& limits);
std::unique_ptr<Dataset> open_tar(const DatasetSpec& spec, const DecodeLimits& limits);

/// The directory itself or its subdirectory `inner`, whichever holds `file`; empty when neither does.
std::string find_directory(const std::string& path, const std::string& inner, const std::vector<std::string>& files);

}  // namespace csml
