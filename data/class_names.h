// Labels of two data sets compared: by the names of their classes, never by their numbers.
#pragma once

#include <string>
#include <vector>

namespace csml {

/// A data set's classes, and what it is called in messages.
struct Classes {
  const std::vector<std::string>& names;
  const std::string& place;
};

/// Labels of `from` as labels of `to`: each class becomes the number of the class of that name there; -1 stays. A class
/// that no label uses may be absent on either side. Throws Error that names a class of which `from` has images and `to`
/// knows nothing: no classifier made from `to` could be right about them.
std::vector<int> labels_by_name(const std::vector<int>& labels, const Classes& from, const Classes& to);

}  // namespace csml
