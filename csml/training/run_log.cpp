#include "csml/training/run_log.h"

#include <algorithm>
#include <fstream>

#include "engine/json.h"

namespace csml {

std::set<std::string> bad_paths_in(const std::filesystem::path& file,
                                   const std::function<void(const std::string& line)>& warn) {
  std::set<std::string> paths;
  int64_t number = 0, first = 0, wrong = 0;
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const nlohmann::json entry = parse_json(line);
    const auto path = entry.find("path");  // end() of what is no object
    if (path != entry.end() && path->is_string())
      paths.insert(path->get<std::string>());
    else if (++wrong == 1)
      first = number;
  }
  if (wrong > 0)
    warn(cat("{}: {} of {} lines name no file, the first is line {}; they are left out", file.string(), wrong, number,
             first));
  return paths;
}

RunLog::RunLog(const std::filesystem::path& out, Device& device, Comm& comm, const Position& at)
    : device_(device), comm_(comm), out_(out), at_(at) {
  if (comm.rank() != 0) return;
  metrics_.emplace(out / "metrics.jsonl");
  bad_images_.emplace(out / "bad_images.jsonl");
  bad_paths_ = bad_paths_in(bad_images_->path(), log_warn);
}

void RunLog::write(nlohmann::json line, const Position& at) {
  if (!metrics_) return;
  line["step"] = at.step;
  line["epoch"] = at.epoch;
  if (events_) events_->write(line);
  try {
    metrics_->write(std::move(line));
  } catch (const Error& e) { log_warn(cat("{}; training goes on without this line", e.what())); }
}

void RunLog::event(const std::string& name, const std::string& text) {
  write({{"kind", "event"}, {"event", name}, {"text", text}});
}

void RunLog::drop_after(int64_t step) {
  if (metrics_) metrics_->truncate_after_step(step);
}

void RunLog::begin_events() {
  if (!metrics_) return;
  try {
    events_.emplace(out_ / "tensorboard", metrics_->path());
  } catch (const std::exception& e) { log_warn(cat("{}; training goes on without TensorBoard's file", e.what())); }
}

void RunLog::write_bad_image(const nlohmann::json& line) {
  try {
    bad_images_->write(line);
  } catch (const Error& e) { log_warn(cat("{}; training goes on without this line", e.what())); }
}

BadImageCallback RunLog::on_bad_image() {
  return [this](const std::string& path, const std::string& reason) {
    const std::lock_guard lock(bad_mutex_);
    if (!bad_paths_.insert(path).second) return;  // the training loader and each refresh meet the same files
    const nlohmann::json line{{"path", path}, {"reason", reason}};
    bad_images_ ? write_bad_image(line) : bad_unwritten_.push_back(line);
    log_warn(cat("unreadable image replaced: {} ({})", path, reason));
  };
}

void RunLog::share_bad_images() {
  if (comm_.size() == 1) return;
  std::string mine;
  {
    const std::lock_guard lock(bad_mutex_);
    mine = bad_unwritten_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    bad_unwritten_ = nlohmann::json::array();
  }
  const std::vector<std::string> all = gather_text(comm_, device_, mine);
  if (!bad_images_) return;
  const std::lock_guard lock(bad_mutex_);
  for (const std::string& text : all)
    for (const nlohmann::json& line : nlohmann::json::parse(text))
      if (bad_paths_.insert(line["path"].get<std::string>()).second) write_bad_image(line);
}

int64_t RunLog::bad_images(const Loader& loader) const {
  const std::lock_guard lock(bad_mutex_);
  return std::max(loader.bad_images(), comm_.size() > 1 ? static_cast<int64_t>(bad_paths_.size()) : 0);
}

}  // namespace csml
