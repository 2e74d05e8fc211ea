#include "data/braces.h"

#include <charconv>
#include <cstdint>

#include "kernels/check.h"

namespace csml {
namespace {

constexpr size_t kMostNames = 1'000'000;

bool is_number(const std::string& text) {
  return !text.empty() && text.size() <= 9 && text.find_first_not_of("0123456789") == std::string::npos;
}

/// What stands between braces, taken apart; nothing where it is neither a list nor a range.
std::vector<std::string> choices_of(const std::string& inside) {
  std::vector<std::string> choices;
  if (inside.find(',') != std::string::npos) {
    for (size_t at = 0; at <= inside.size();) {
      const size_t end = std::min(inside.find(',', at), inside.size());
      choices.push_back(inside.substr(at, end - at));
      at = end + 1;
    }
    return choices;
  }
  const size_t dots = inside.find("..");
  if (dots == std::string::npos) return {};
  const std::string first = inside.substr(0, dots), last = inside.substr(dots + 2);
  if (!is_number(first) || !is_number(last)) return {};
  const int64_t low = std::stoll(first), high = std::stoll(last);
  for (int64_t i = low; i <= high && choices.size() <= kMostNames; ++i) {
    std::string number = cat("{}", i);
    if (number.size() < first.size()) number.insert(0, first.size() - number.size(), '0');
    choices.push_back(std::move(number));
  }
  return choices;
}

void expand(const std::string& before, const std::string& rest, std::vector<std::string>& names) {
  const size_t open = rest.find('{'), close = open == std::string::npos ? open : rest.find('}', open);
  if (close == std::string::npos) {
    if (names.size() >= kMostNames) throw Error(cat("a pattern of more than {} names", kMostNames));
    names.push_back(before + rest);
    return;
  }
  const std::vector<std::string> choices = choices_of(rest.substr(open + 1, close - open - 1));
  if (choices.empty()) return expand(before + rest.substr(0, close + 1), rest.substr(close + 1), names);
  for (const std::string& choice : choices)
    expand(before + rest.substr(0, open) + choice, rest.substr(close + 1), names);
}

}  // namespace

std::vector<std::string> expand_braces(const std::string& pattern) {
  std::vector<std::string> names;
  expand("", pattern, names);
  return names;
}

}  // namespace csml
