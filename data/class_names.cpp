#include "data/class_names.h"

#include <algorithm>
#include <unordered_map>

#include "kernels/check.h"

namespace csml {

std::vector<int> labels_by_name(const std::vector<int>& labels, const Classes& from, const Classes& to) {
  if (from.names == to.names) return labels;
  std::unordered_map<std::string, int> number;
  for (size_t i = 0; i < to.names.size(); ++i) number.emplace(to.names[i], static_cast<int>(i));
  std::vector<int> same(from.names.size(), -1);
  for (size_t i = 0; i < from.names.size(); ++i)
    if (const auto found = number.find(from.names[i]); found != number.end()) same[i] = found->second;
  std::vector<int> out;
  out.reserve(labels.size());
  for (const int label : labels) {
    if (label >= 0 && same[static_cast<size_t>(label)] < 0)
      throw Error(
          cat("{} has {} images of class '{}', which {} has not; its classes are {}{}", from.place,
              std::count(labels.begin(), labels.end(), label), from.names[static_cast<size_t>(label)], to.place,
              fmt::join(to.names.begin(), to.names.begin() + std::min<ptrdiff_t>(8, std::ssize(to.names)), ", "),
              to.names.size() > 8 ? ", …" : ""));
    out.push_back(label < 0 ? label : same[static_cast<size_t>(label)]);
  }
  return out;
}

}  // namespace csml
