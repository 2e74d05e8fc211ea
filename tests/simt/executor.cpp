#include "tests/simt/executor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

namespace csml::simt {

namespace {

std::string text_of(const Where& where) {
  const std::string file = where.file_name();
  return cat("{}:{}", file.substr(file.rfind('/') + 1), where.line());
}

bool same(const char* what, const Where& where, const Thread& t) {
  return std::strcmp(what, t.what) == 0 && where.line() == t.where.line() && where.column() == t.where.column() &&
         std::strcmp(where.file_name(), t.where.file_name()) == 0;
}

std::string state_of(const Thread& t) {
  if (t.done) return cat("thread {} has ended", t.id);
  if (t.what) return cat("thread {} waits in {} ({})", t.id, t.what, text_of(t.where));
  return cat("thread {} runs", t.id);
}

}  // namespace

Executor& Executor::get() {
  static Executor executor;
  return executor;
}

Executor::Executor() {
  const char* seed = std::getenv("CSML_SIMT_SEED");
  set_seed(seed ? std::strtoull(seed, nullptr, 10) : 1);
}

uint32_t Executor::draw(uint32_t n) {
  random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
  return static_cast<uint32_t>(((random_ >> 32) * n) >> 32);
}

std::string Executor::place() const {
  return cat("kernel {}, block ({}, {}, {}), thread {}", launch_->name, block_.x, block_.y, block_.z,
             self_ ? self_->id : 0);
}

void Executor::fail(const std::string& what) const { throw Error(cat("{}: {}", place(), what)); }

void Executor::run(const Launch& how, const std::function<void()>& body) {
  CHECK(!launch_, "kernel {} was started from inside kernel {}", how.name, launch_->name);
  launch_ = &how;
  body_ = &body;
  threads_.resize(static_cast<size_t>(how.threads));
  warps_.resize(static_cast<size_t>(how.threads / kWarp));
  while (fibers_.size() < threads_.size()) {
    fibers_.push_back(std::make_unique<Fiber>(fiber_body));
    free_.push_back(fibers_.back().get());
  }
  error_ = nullptr;
  shared_.begin_launch(how.shared_bytes);
  std::vector<int64_t> order(static_cast<size_t>(how.grid.x * how.grid.y * how.grid.z));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(static_cast<uint32_t>(i))]);
  for (const int64_t b : order) {
    block_ = {static_cast<int>(b % how.grid.x), static_cast<int>(b / how.grid.x % how.grid.y),
              static_cast<int>(b / how.grid.x / how.grid.y)};
    run_block();
    if (error_) break;
  }
  self_ = nullptr;
  launch_ = nullptr;
  if (error_) {  // threads that were under way are abandoned where they stood
    free_.clear();
    for (auto& fiber : fibers_) {
      fiber->reset();
      free_.push_back(fiber.get());
    }
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Executor::run_block() {
  shared_.begin_block();
  arrived_ = ended_ = 0;
  std::fill(warps_.begin(), warps_.end(), Warp{});
  ready_.resize(threads_.size());
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& t = threads_[i];
    t.id = static_cast<int>(i);
    t.fiber = nullptr;
    t.done = false;
    t.what = nullptr;
    t.copies.clear();
    t.groups = 0;
    ready_[i] = t.id;
  }
  while (!ready_.empty() && !error_) {
    const uint32_t pick = draw(static_cast<uint32_t>(ready_.size()));
    self_ = &threads_[static_cast<size_t>(ready_[pick])];
    ready_[pick] = ready_.back();
    ready_.pop_back();
    if (!self_->fiber) {
      self_->fiber = free_.back();
      free_.pop_back();
    }
    self_->fiber->resume();
  }
  if (!error_ && ended_ < static_cast<int>(threads_.size())) {
    try {
      fail_stuck();
    } catch (...) { error_ = std::current_exception(); }
  }
}

/// A fiber runs one thread to its end, then the next one that has not begun: threads that never wait share a fiber.
void Executor::fiber_body() {
  Executor& e = get();
  for (;;) {
    try {
      (*e.body_)();
      if (!e.self_->copies.empty()) e.fail("ends with a copy_async that it has not waited for");
    } catch (...) { e.error_ = std::current_exception(); }
    Fiber* const fiber = e.self_->fiber;
    e.self_->done = true;
    ++e.ended_;
    e.self_->fiber = nullptr;
    if (!e.error_ && !e.ready_.empty()) {
      const uint32_t pick = e.draw(static_cast<uint32_t>(e.ready_.size()));
      Thread& next = e.threads_[static_cast<size_t>(e.ready_[pick])];
      if (!next.fiber) {
        e.ready_[pick] = e.ready_.back();
        e.ready_.pop_back();
        next.fiber = fiber;
        e.self_ = &next;
        continue;
      }
    }
    e.free_.push_back(fiber);
    Fiber::yield();
  }
}

void Executor::wait(const char* what, Where where) {
  Thread* const self = self_;
  self->what = what;
  self->where = where;
  Fiber::yield();
  self_ = self;
}

void Executor::sync_block(Where where) {
  if (++arrived_ < static_cast<int>(threads_.size())) return wait("sync_block", where);
  self_->what = nullptr;
  for (const Thread& t : threads_)
    if (&t != self_ && !same("sync_block", where, t))
      fail(cat("is in sync_block ({}), but {}: all threads must meet at the same one", text_of(where), state_of(t)));
  arrived_ = 0;
  shared_.block_barrier();
  for (Thread& t : threads_)
    if (&t != self_) {
      t.what = nullptr;
      ready_.push_back(t.id);
    }
}

void Executor::warp_operation(const char* what, Where where, const void* in, void* out, Combine combine) {
  Warp& warp = warps_[static_cast<size_t>(self_->id / kWarp)];
  if (warp.arrived == 0) {
    warp.first = self_->id;
  } else {
    const Thread& first = threads_[static_cast<size_t>(warp.first)];
    if (!same(what, where, first))
      fail(cat("is in {} ({}), but {}: all lanes of a warp must meet in the same operation", what, text_of(where),
               state_of(first)));
  }
  self_->in = in;
  self_->out = out;
  if (++warp.arrived < kWarp) return wait(what, where);
  warp.arrived = 0;
  Thread* const lanes = &threads_[static_cast<size_t>(self_->id / kWarp * kWarp)];
  if (combine) {
    const void* ins[kWarp];
    void* outs[kWarp];
    for (int i = 0; i < kWarp; ++i) ins[i] = lanes[i].in, outs[i] = lanes[i].out;
    combine(ins, outs);
  }
  for (int i = 0; i < kWarp; ++i)
    if (&lanes[i] != self_) {
      lanes[i].what = nullptr;
      ready_.push_back(lanes[i].id);
    }
}

void Executor::sync_warp(Where where) {
  // Counted before the others run on: each leaves the barrier with the new count.
  Warp& warp = warps_[static_cast<size_t>(self_->id / kWarp)];
  if (warp.arrived == kWarp - 1) ++warp.barriers;
  warp_operation("sync_warp", where, nullptr, nullptr, nullptr);
}

void Executor::copy_async(const SharedArray& to, int64_t i, int count, const void* from) {
  access(to, i, count, Access::write);
  shared_.copy_issued(to, i, count, true, who(self_->id));
  self_->copies.push_back({to, i, count, from, self_->groups});
}

void Executor::copy_wait(int pending) {
  std::vector<PendingCopy>& copies = self_->copies;
  const auto arrives = [&](const PendingCopy& c) { return c.group < self_->groups - pending; };
  for (const PendingCopy& c : copies) {
    if (!arrives(c)) continue;
    const size_t bytes = static_cast<size_t>(c.count) * c.to.element;
    if (c.from)
      std::memcpy(shared_.data(c.to, c.i), c.from, bytes);
    else
      std::memset(shared_.data(c.to, c.i), 0, bytes);
    shared_.copy_issued(c.to, c.i, c.count, false, who(self_->id));
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), arrives), copies.end());
}

void Executor::fail_stuck() const {
  // Whoever waits for a warp says more than whoever waits for the block.
  const Thread* waiting = nullptr;
  for (const Thread& t : threads_)
    if (t.what && (!waiting || std::strcmp(waiting->what, "sync_block") == 0)) waiting = &t;
  const bool block = std::strcmp(waiting->what, "sync_block") == 0;
  const size_t begin = block ? 0 : static_cast<size_t>(waiting->id / kWarp * kWarp);
  const size_t end = block ? threads_.size() : begin + kWarp;
  for (size_t i = begin; i < end; ++i)
    if (!threads_[i].what || !same(waiting->what, waiting->where, threads_[i]))
      throw Error(cat("kernel {}, block ({}, {}, {}), thread {}: waits in {} ({}), where {} never comes: {}",
                      launch_->name, block_.x, block_.y, block_.z, waiting->id, waiting->what, text_of(waiting->where),
                      cat("thread {}", i), state_of(threads_[i])));
  throw Error(cat("{}: stuck", place()));
}

}  // namespace csml::simt
