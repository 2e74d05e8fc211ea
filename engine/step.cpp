#include "engine/step.h"

#include <cstdlib>
#include <string>

namespace csml {

Step::Step(Device& device, std::function<void()> work, int warmup_runs)
    : device_(device), work_(std::move(work)), warmup_runs_(warmup_runs) {
  const char* eager = std::getenv("CSML_EAGER");
  const char* nan = std::getenv("CSML_NAN");  // its checks read device data, which a recording cannot
  eager_ = (eager && std::string(eager) == "1") || (nan && std::string(nan) == "1");
}

void Step::run() {
  if (recorded_) return recorded_->run();
  if (eager_ || runs_++ < warmup_runs_) return work_();
  recorded_ = device_.record(work_, true);
}

void Step::reset() {
  recorded_.reset();
  runs_ = 0;
}

}  // namespace csml
