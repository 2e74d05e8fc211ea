#include "csml/evaluation/label_split.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <numeric>
#include <unordered_map>

#include "kernels/check.h"
#include "kernels/random.h"

namespace csml {

namespace {

constexpr uint64_t kHoldOut = 0, kBalanced = 1, kLowShot = 2;  // what Purpose::split draws for: keys of their own

template <class T>
void shuffle(std::vector<T>* rows, Random random) {
  for (size_t i = rows->size(); i > 1; --i) std::swap((*rows)[i - 1], (*rows)[random.below(static_cast<uint32_t>(i))]);
}

template <class T>
std::vector<std::vector<T>> rows_by_class(const std::vector<int>& labels, int class_count) {
  std::vector<std::vector<T>> rows(static_cast<size_t>(class_count));
  for (size_t i = 0; i < labels.size(); ++i) {
    CHECK(labels[i] >= 0 && labels[i] < class_count, "image {} has label {} of {} classes", i, labels[i], class_count);
    rows[static_cast<size_t>(labels[i])].push_back(static_cast<T>(i));
  }
  return rows;
}

}  // namespace

std::vector<int64_t> balanced_labels(const std::vector<int>& labels, int class_count, double share, uint64_t seed) {
  CHECK(share > 0 && share <= 1, "a share of {} of the labels: must lie in (0, 1]", share);
  std::vector<std::vector<int64_t>> rows = rows_by_class<int64_t>(labels, class_count);
  for (size_t c = 0; c < rows.size(); ++c) shuffle(&rows[c], Random(seed, Purpose::split, kBalanced, c));
  std::vector<size_t> order(rows.size());  // the classes that get one more
  std::iota(order.begin(), order.end(), 0);
  shuffle(&order, Random(seed, Purpose::split, kBalanced, rows.size()));

  const auto wanted = static_cast<size_t>(
      std::max(static_cast<double>(class_count), std::floor(share * static_cast<double>(labels.size()) + 1e-9)));
  std::vector<int64_t> chosen;
  for (size_t round = 0; chosen.size() < wanted; ++round) {
    const size_t before = chosen.size();
    for (size_t c : order)
      if (round < rows[c].size() && chosen.size() < wanted) chosen.push_back(rows[c][round]);
    if (chosen.size() == before) break;
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

std::vector<int64_t> listed_labels(const Dataset& dataset, const std::filesystem::path& file, int64_t* unmatched) {
  std::ifstream in(file);
  if (!in) throw Error(cat("cannot read the list of labelled images {}", file.string()));
  const auto last_part = [](const std::string& path) { return path.substr(path.find_last_of('/') + 1); };
  std::unordered_map<std::string, std::vector<int64_t>> by_name;
  for (int64_t i = 0; i < dataset.size(); ++i) by_name[last_part(dataset.name(i))].push_back(i);
  std::vector<int64_t> chosen;
  *unmatched = 0;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty()) continue;
    int64_t record = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), record);
    if (error == std::errc() && end == line.data() + line.size()) {
      if (record < 0 || record >= dataset.size())
        throw Error(cat("{}:{}: image {} of {}", file.string(), number, record, dataset.size()));
      chosen.push_back(record);
      continue;
    }
    const auto found = by_name.find(last_part(line));
    if (found == by_name.end()) {
      ++*unmatched;
    } else if (found->second.size() == 1) {
      chosen.push_back(found->second.front());
    } else {  // the same file name in several folders: the path decides
      std::vector<int64_t> matches;
      for (int64_t i : found->second)
        if (dataset.name(i).ends_with("/" + line)) matches.push_back(i);
      if (matches.size() > 1)
        throw Error(cat("{}:{}: {} fits several images; give more of its path", file.string(), number, line));
      matches.empty() ? void(++*unmatched) : chosen.push_back(matches.front());
    }
  }
  if (chosen.empty())
    throw Error(
        cat("{} names no image of {}; lines are file names or image numbers", file.string(), dataset.describe()));
  std::sort(chosen.begin(), chosen.end());
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  return chosen;
}

HoldOut hold_out(const std::vector<int>& labels, int class_count, double share, uint64_t seed) {
  HoldOut out;
  std::vector<std::vector<int32_t>> by_class = rows_by_class<int32_t>(labels, class_count);
  for (size_t c = 0; c < by_class.size(); ++c) {
    std::vector<int32_t>& rows = by_class[c];
    shuffle(&rows, Random(seed, Purpose::split, kHoldOut, c));
    auto count = static_cast<int64_t>(std::lround(share * static_cast<double>(rows.size())));
    if (rows.size() > 1) count = std::clamp<int64_t>(count, 1, static_cast<int64_t>(rows.size()) - 1);
    out.held.insert(out.held.end(), rows.begin(), rows.begin() + count);
    out.rest.insert(out.rest.end(), rows.begin() + count, rows.end());
  }
  std::sort(out.rest.begin(), out.rest.end());
  std::sort(out.held.begin(), out.held.end());
  return out;
}

std::vector<int32_t> low_shot(const std::vector<int>& labels, int class_count, int count, uint64_t seed, int run) {
  std::vector<int32_t> chosen;
  std::vector<std::vector<int32_t>> by_class = rows_by_class<int32_t>(labels, class_count);
  for (size_t c = 0; c < by_class.size(); ++c) {
    std::vector<int32_t>& rows = by_class[c];
    if (static_cast<int>(rows.size()) < count)
      throw Error(cat("{} images of every class are asked, class {} has {}", count, c, rows.size()));
    shuffle(&rows, Random(seed, Purpose::split, kLowShot, c, static_cast<uint32_t>(run)));
    chosen.insert(chosen.end(), rows.begin(), rows.begin() + count);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace csml
