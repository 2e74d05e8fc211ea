// The known word nearest to a misspelt one, for messages that say "did you mean".
#pragma once

#include <string>
#include <vector>

namespace csml {

/// The known word nearest to `word` by edit distance; empty where none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& known);

/// "; did you mean …?" with the nearest word, else `otherwise`.
std::string suggestion(const std::string& word, const std::vector<std::string>& known,
                       const std::string& otherwise = "");

}  // namespace csml
