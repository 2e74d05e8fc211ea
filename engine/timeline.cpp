#include "engine/timeline.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/file.h"

namespace csml {

namespace {

const char* name_of(Timeline::Track track) {
  switch (track) {
    case Timeline::Track::passes:
      return "passes";
    case Timeline::Track::compute:
      return "backward ops";
    case Timeline::Track::buckets:
      return "gradient buckets complete";
    case Timeline::Track::communication:
      return "reductions";
    case Timeline::Track::waiting:
      break;
  }
  return "waiting for reductions";
}

using Interval = std::pair<double, double>;

/// Intervals of one track that neither touch nor overlap, in order.
std::vector<Interval> united(const std::vector<Timeline::Span>& spans, Timeline::Track track) {
  std::vector<Interval> all;
  for (const Timeline::Span& s : spans)
    if (s.track == track) all.emplace_back(s.begin, s.end);
  std::sort(all.begin(), all.end());
  std::vector<Interval> joined;
  for (const Interval& i : all) {
    if (joined.empty() || i.first > joined.back().second)
      joined.push_back(i);
    else
      joined.back().second = std::max(joined.back().second, i.second);
  }
  return joined;
}

}  // namespace

double Timeline::now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Timeline::add(Span span) {
  if (spans_.size() < most_) {
    spans_.push_back(std::move(span));
  } else {
    ++dropped_;
  }
}

Timeline::Communication Timeline::communication() const {
  const std::vector<Interval> reductions = united(spans_, Track::communication), work = united(spans_, Track::compute);
  Communication c;
  size_t first = 0;
  for (const auto& [begin, end] : reductions) {
    double hidden = 0;
    while (first < work.size() && work[first].second <= begin) ++first;
    for (size_t i = first; i < work.size() && work[i].first < end; ++i)
      hidden += std::min(end, work[i].second) - std::max(begin, work[i].first);
    c.whole += end - begin;
    c.exposed += end - begin - hidden;
  }
  c.share = c.whole > 0 ? c.exposed / c.whole : 0;
  return c;
}

void Timeline::write(const std::filesystem::path& path) const {
  nlohmann::json events = nlohmann::json::array();
  for (const Track track : {Track::passes, Track::compute, Track::buckets, Track::communication, Track::waiting})
    events.push_back({{"ph", "M"},
                      {"pid", rank_},
                      {"tid", static_cast<int>(track)},
                      {"name", "thread_name"},
                      {"args", {{"name", name_of(track)}}}});
  for (const Span& s : spans_) {
    nlohmann::json event{{"name", s.name}, {"pid", rank_}, {"tid", static_cast<int>(s.track)}, {"ts", 1e6 * s.begin}};
    if (s.track == Track::buckets) {
      event.update({{"ph", "i"}, {"s", "t"}});
    } else {
      event.update({{"ph", "X"}, {"dur", 1e6 * (s.end - s.begin)}});
    }
    events.push_back(std::move(event));
  }
  const Communication c = communication();
  write_text_file(path, nlohmann::json{{"traceEvents", events},
                                       {"displayTimeUnit", "ms"},
                                       {"otherData",
                                        {{"rank", rank_},
                                         {"dropped_spans", dropped_},
                                         {"communication_seconds", c.whole},
                                         {"exposed_seconds", c.exposed},
                                         {"exposed_share", c.share}}}}
                                .dump() +
                            "\n");
}

}  // namespace csml
