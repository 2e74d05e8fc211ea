// The values that keys may have: as text, and checked.
#include <algorithm>
#include <cmath>

#include "csml/config/table.h"
#include "kernels/check.h"

namespace csml {

namespace {

std::string listed(const std::vector<double>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size(); ++i)
    text += cat("{}{}", i == 0 ? "" : i + 1 == numbers.size() ? " or " : ", ", numbers[i]);
  return text;
}

std::string range(const Allowed& a) {
  const bool lower = std::isfinite(a.least), upper = std::isfinite(a.most);
  if (lower && upper) return cat("in {}{}, {}{}", a.above ? "(" : "[", a.least, a.most, a.below ? ")" : "]");
  if (lower) return cat("{} {}", a.above ? "above" : "at least", a.least);
  return upper ? cat("{} {}", a.below ? "below" : "at most", a.most) : "";
}

bool allows(const Allowed& a, double x) {
  if (a.special && x == *a.special) return true;
  if (!a.numbers.empty()) return std::find(a.numbers.begin(), a.numbers.end(), x) != a.numbers.end();
  return (a.above ? x > a.least : x >= a.least) && (a.below ? x < a.most : x <= a.most);
}
bool allows(const Allowed& a, const std::string& word) {
  return a.words.empty() || std::find(a.words.begin(), a.words.end(), word) != a.words.end();
}

struct Check {
  const ConfigKey& key;

  template <class T>
  void refuse_unless(bool allowed, const T& value) const {
    if (!allowed) throw UsageError(cat("{} must be {}, got {}", key.name, allowed_text(key.allowed), value));
  }
  void operator()(const bool*) const {}
  void operator()(const std::string* value) const { refuse_unless(allows(key.allowed, *value), "\"" + *value + "\""); }
  void operator()(const std::array<float, 4>* values) const {
    for (const float value : *values) refuse_unless(allows(key.allowed, value), value);
  }
  template <class T>
  void operator()(const std::vector<T>* values) const {
    for (const T& value : *values) (*this)(&value);
  }
  template <class T>
  void operator()(const T* value) const {
    refuse_unless(allows(key.allowed, static_cast<double>(*value)), *value);
  }
};

}  // namespace

Allowed Allowed::or_special(double value, std::string means) const {
  Allowed copy = *this;
  copy.special = value;
  copy.meaning = std::move(means);
  return copy;
}

std::string allowed_text(const Allowed& a) {
  if (!a.rule.empty()) return a.rule;
  if (!a.words.empty()) return cat("{}", fmt::join(a.words, " or "));
  const std::string plain = a.numbers.empty() ? range(a) : listed(a.numbers);
  if (!a.special) return plain;
  const std::string special = cat("{} ({})", *a.special, a.meaning);
  if (*a.special != a.least) return cat("{} or {}", special, plain);
  return std::isfinite(a.most) ? cat("{} to {}", special, a.most) : cat("{} or more", special);
}

void check_values(const std::vector<ConfigKey>& keys) {
  for (const ConfigKey& key : keys) std::visit(Check{key}, key.value);
}

}  // namespace csml
