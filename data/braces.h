// Patterns of file names with braces, as webdataset's users write them.
#pragma once

#include <string>
#include <vector>

namespace csml {

/// "x-{000..002}{a,b}" -> x-000a, x-000b, x-001a, …: lists and ranges of numbers, whose leading zeros stay. Without a
/// brace, the pattern itself. Throws Error for more than 1,000,000 names.
std::vector<std::string> expand_braces(const std::string& pattern);

}  // namespace csml
