#include "data/dataset.h"

// Header only, and without the vector code, whose AVX-512 part makes g++ 12 warn.
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SCALAR
#include <xxhash.h>

#include <algorithm>

#include "data/class_names.h"
#include "data/kinds.h"
#include "data/selection.h"
#include "data/square.h"
#include "kernels/check.h"

namespace csml {

uint64_t hash_bytes(const void* data, size_t size, uint64_t seed) { return XXH3_64bits_withSeed(data, size, seed); }

int Dataset::label(int64_t i) const {
  DCHECK(i >= 0 && i < size(), "image {} of {}", i, size());
  return labels_[static_cast<size_t>(i)];
}

std::string left_out_text(const std::map<std::string, int64_t>& left_out) {
  std::string text;
  for (const auto& [reason, count] : left_out)
    text += cat("{}{} {}", text.empty() ? "; left out: " : ", ", count, reason);
  return text;
}

void Dataset::use_classes_of(const Dataset& reference) {
  const std::string place = cat("{}:{}", kind_, path_), other = cat("{}:{}", reference.kind_, reference.path_);
  labels_ = labels_by_name(labels_, {class_names_, place}, {reference.class_names_, other});
  class_names_ = reference.class_names_;
}

void Dataset::limit(int64_t count) {
  CHECK(count > 0, "a limit of {} images", count);
  if (count < size()) select(limited(labels_, class_count(), count));
}

bool Dataset::encoded(int64_t, std::vector<uint8_t>&) const { return false; }

Image Dataset::load(int64_t i) const {
  CHECK(i >= 0 && i < size(), "image {} of {}", i, size());
  LoadScratch scratch;
  const ImageView from = view(i, scratch);
  Image copy(from.height, from.width, from.channels);
  store_pixels(from, from.channels, copy.data());
  return copy;
}

std::string Dataset::describe() const {
  const std::string classes = has_labels() ? cat("{} classes", class_count()) : "no labels";
  return cat("{}:{}: {} images, {}, {}{}{}{}", kind_, path_, size(), classes, pixels_text(), note_.empty() ? "" : "; ",
             note_, left_out_text(left_out_));
}

std::unique_ptr<Dataset> open_dataset(const std::string& text, const DecodeLimits& limits) {
  const DatasetSpec spec = parse_spec(text);
  std::unique_ptr<Dataset> set = find_kind(spec.kind)->open(spec, limits);
  if (spec.limit > 0) set->limit(spec.limit);
  if (spec.holdout > 0) {
    set->select(held_out(set->labels_, set->class_count(), spec.holdout, spec.part_holdout));
    if (set->size() == 0) throw Error(cat("data set {}: holdout={} leaves no image", text, spec.holdout));
  }
  if (!spec.labels) {
    std::fill(set->labels_.begin(), set->labels_.end(), -1);
    set->class_names_.clear();
  }
  return set;
}

}  // namespace csml
