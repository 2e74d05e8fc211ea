#include "engine/comm_rehearsal.h"

#include <map>

#include "engine/ops.h"

namespace csml {

namespace {

class Rehearsal final : public Comm {
 public:
  explicit Rehearsal(Device& device) : device_(device) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce_mean(const Tensor& t) override { move(t); }
  void all_reduce_sum(const Tensor& t) override { move(t); }
  void all_reduce_max(const Tensor& t) override { move(t); }
  void all_reduce_min(const Tensor& t) override { move(t); }
  void all_gather(const Tensor& mine, const Tensor& all) override {
    if (ConstView(mine).data != ConstView(all).data) copy(mine, all);
  }
  void broadcast(const Tensor&, int root) override { CHECK(root == 0, "broadcast from rank {} of 1", root); }
  void barrier() override {}
  void fork() override { forked_ = true; }
  void join() override {
    forked_ = false;
    device_.backend().join_copies();
  }
  bool recordable() const override { return true; }
  void phase(const std::string&) override {}
  void abort(const std::string&, int) override {}

 private:
  void move(const Tensor& t) {
    Tensor& to = scratch_[ConstView(t).data];  // one for each tensor: reductions under way share nothing
    if (!to || to.bytes() != t.bytes()) to = Tensor(device_, t.shape(), t.dtype());
    device_.backend().copy_beside({.x = t, .y = to});
    if (!forked_) device_.backend().join_copies();
  }

  Device& device_;
  bool forked_ = false;
  std::map<const void*, Tensor> scratch_;
};

}  // namespace

std::unique_ptr<Comm> rehearsal(Device& device) { return std::make_unique<Rehearsal>(device); }

}  // namespace csml
