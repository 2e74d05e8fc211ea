// SPEC: the string that names a data set and what to take of it (data/dataset.h has its grammar).
#pragma once

#include <cstdint>
#include <string>

namespace csml {

/// A SPEC taken apart; absent options keep their defaults.
struct DatasetSpec {
  std::string kind, path;
  bool test = false;          // split=test
  bool unlabeled = false;     // split=unlabeled, of STL-10
  bool split_given = false;   // split= was written
  int64_t limit = 0;          // 0: all
  double holdout = 0;         // share in [0, 1)
  bool part_holdout = false;  // part=holdout
  int size = 0;               // 0: as stored
  int channels = 3;
  bool labels = true;
  bool exif = false;  // exif=apply
};

/// Throws UsageError naming the word that cannot be read and the nearest one that can.
DatasetSpec parse_spec(const std::string& text);

}  // namespace csml
