#include "data/spec.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <vector>

#include "data/kinds.h"
#include "engine/nearest.h"
#include "kernels/check.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

const std::vector<std::string> kOptions = {"split", "limit", "holdout", "part", "size", "channels", "labels", "exif"};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

int64_t whole_number(const std::string& name, const std::string& text, int64_t low, int64_t high) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    throw UsageError(cat("data set option {}={}: expected a whole number from {} to {}", name, text, low, high));
  return value;
}

double percentage(const std::string& text) {
  const bool percent = text.ends_with('%');
  double value = 0;
  const char* last = text.data() + text.size() - (percent ? 1 : 0);
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (percent) value /= 100;
  if (error != std::errc() || end != last || !(value > 0 && value < 1))
    throw UsageError(cat("data set option holdout={}: expected a share such as 10% or 0.1", text));
  return value;
}

void set_option(DatasetSpec& spec, const std::string& option) {
  const size_t equals = option.find('=');
  const std::string name = option.substr(0, equals);
  if (std::find(kOptions.begin(), kOptions.end(), name) == kOptions.end())
    throw UsageError(
        cat("unknown data set option \"{}\"{} (known: {})", name, suggestion(name, kOptions), joined(kOptions)));
  if (equals == std::string::npos) throw UsageError(cat("data set option \"{0}\" needs a value: {0}=…", name));
  const std::string value = option.substr(equals + 1);
  const auto choice = [&](const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) == known.end())
      throw UsageError(cat("data set option {}={}: expected one of {}", name, value, joined(known)));
    return value;
  };
  if (name == "split") {
    const std::string split = choice({"train", "test", "val", "unlabeled"});
    spec.test = split == "test" || split == "val";
    spec.unlabeled = split == "unlabeled";
    spec.split_given = true;
  } else if (name == "limit") {
    spec.limit = whole_number(name, value, 1, int64_t{1} << 40);
  } else if (name == "holdout") {
    spec.holdout = percentage(value);
  } else if (name == "part") {
    spec.part_holdout = choice({"rest", "holdout"}) == "holdout";
  } else if (name == "size") {
    spec.size = static_cast<int>(whole_number(name, value, 1, 4096));
  } else if (name == "channels") {
    spec.channels = choice({"1", "3"}) == "1" ? 1 : 3;
  } else if (name == "exif") {
    spec.exif = choice({"apply", "ignore"}) == "apply";
  } else {
    choice({"none"});
    spec.labels = false;
  }
}

}  // namespace

DatasetSpec parse_spec(const std::string& text) {
  DatasetSpec spec;
  const size_t question = text.find('?');
  std::string head = text.substr(0, question);
  if (question != std::string::npos) {
    size_t at = question + 1;
    while (at <= text.size()) {
      const size_t end = std::min(text.find_first_of("&?", at), text.size());
      if (end > at) set_option(spec, text.substr(at, end - at));
      at = end + 1;
    }
  }
  std::error_code error;
  const size_t colon = head.find(':');
  if (colon != std::string::npos) {
    spec.kind = head.substr(0, colon);
    if (find_kind(spec.kind)) {
      head = head.substr(colon + 1);
    } else if (fs::exists(head, error)) {
      spec.kind.clear();  // a path with a colon in it
    } else {
      std::vector<std::string> known;
      for (const DatasetKind& kind : dataset_kinds()) known.push_back(kind.name);
      throw UsageError(
          cat("unknown data set kind \"{}\"{} (known: {})", spec.kind, suggestion(spec.kind, known), kind_names()));
    }
  }
  if (head.empty()) throw UsageError(cat("data set \"{}\" has no path: write KIND:PATH", text));
  if (spec.part_holdout && spec.holdout == 0)
    throw UsageError("data set option part=holdout needs the share to hold out, as in holdout=10%");
  spec.path = head;
  if (spec.kind.empty()) spec.kind = recognise(head).name;
  if (spec.unlabeled && spec.kind != "stl10")
    throw UsageError(cat("data set {}: split=unlabeled is for stl10 alone; labels=none forgets labels", text));
  return spec;
}

}  // namespace csml
