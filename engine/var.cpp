#include "engine/var.h"

#include <cstdlib>
#include <map>
#include <unordered_map>

#include "engine/timeline.h"

namespace csml {

struct Var::Node {
  const char* name = "constant";
  Tensor value;
  Tensor grad, grad2;  // interior: pending gradients; leaf: grad is where the gradient goes
  bool wants_grad = false;
  bool is_leaf = false;
  bool sums_on_load = false;
  bool written = false;  // leaf: grad holds a contribution
  uint64_t order = 0;    // creation order
  std::vector<Var> inputs;
  BackwardOfSum backward;

  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node();

  /// Where the next contribution to this node's gradient goes.
  Sink sink() {
    if (!wants_grad) return {};
    if (is_leaf) {
      const Write write = written ? Write::accumulate : Write::overwrite;
      written = true;
      return {grad, write};
    }
    if (!grad) {
      grad = like(value);
      return {grad, Write::overwrite};
    }
    if (sums_on_load && !grad2) {
      grad2 = like(value);
      return {grad2, Write::overwrite};
    }
    return {grad, Write::accumulate};
  }
};

namespace {

/// What a dropped node held of the graph behind it.
struct Dropped {
  std::vector<Var> inputs;
  Var::BackwardOfSum backward;  // may have captured Vars
};
thread_local std::vector<Dropped>* g_dropped = nullptr;  // set while a graph is being dropped

thread_local bool g_no_grad = false;
thread_local bool g_nan_check = false;
thread_local uint64_t g_next_order = 1;

bool nan_check_enabled() {
  static const bool enabled = [] {
    const char* value = std::getenv("CSML_NAN");
    return value && std::string(value) == "1";
  }();
  return enabled || g_nan_check;
}

void check_finite(const char* name, const char* what, const Tensor& t) {
  if (!t || (t.dtype() != DType::f32 && t.dtype() != DType::bf16 && t.dtype() != DType::f16)) return;
  Tensor flag(t.device(), {1}, DType::i32);
  backend(t).all_finite({.x = t, .flag = flag});
  CHECK(flag.host<int32_t>()[0] == 1, "the {} of op '{}' (shape {}) holds a NaN or an infinity", what, name,
        t.shape().text());
}

/// Runs an op's backward and tells the device's timeline, if there is one, when it ran.
template <class F>
void timed(Device& device, const char* name, const F& backward) {
  Timeline* timeline = device.timeline();
  if (!timeline) return backward();
  const auto begin = std::make_shared<double>();
  device.backend().host_call([timeline, begin] { *begin = timeline->now(); });
  backward();
  device.backend().host_call([timeline, begin, name] { timeline->add(Timeline::Track::compute, name, *begin); });
}

}  // namespace

// A node's inputs may be the last users of their nodes, those of theirs, and so on: as many calls deep as the graph is
// long, were it not for a list.
Var::Node::~Node() {
  if (inputs.empty() && !backward) return;
  std::vector<Dropped> list;
  const bool outermost = !g_dropped;
  if (outermost) g_dropped = &list;
  g_dropped->push_back({std::move(inputs), std::move(backward)});
  if (!outermost) return;
  while (!list.empty()) {
    const Dropped next = std::move(list.back());  // its end may lengthen the list
    list.pop_back();
  }
  g_dropped = nullptr;
}

NanCheck::NanCheck() : before_(g_nan_check) { g_nan_check = true; }
NanCheck::~NanCheck() { g_nan_check = before_; }

NoGrad::NoGrad() : before_(g_no_grad) { g_no_grad = true; }
NoGrad::~NoGrad() { g_no_grad = before_; }

Var::Var(Tensor value) : node_(std::make_shared<Node>()) { node_->value = std::move(value); }

Var Var::leaf(Tensor value, Tensor grad) {
  CHECK(value.shape() == grad.shape(), "leaf of shape {} with gradient of shape {}", value.shape().text(),
        grad.shape().text());
  Var v(std::move(value));
  v.node_->name = "leaf";
  v.node_->grad = std::move(grad);
  v.node_->wants_grad = v.node_->is_leaf = true;
  return v;
}

Var Var::op_of_sum(const char* name, Tensor y, std::vector<Var> inputs, BackwardOfSum backward) {
  if (nan_check_enabled()) check_finite(name, "result", y);
  Var v(std::move(y));
  v.node_->name = name;
  if (g_no_grad) return v;
  for (const Var& input : inputs) v.node_->wants_grad |= input.requires_grad();
  if (!v.node_->wants_grad) return v;
  v.node_->sums_on_load = true;
  v.node_->order = g_next_order++;
  v.node_->inputs = std::move(inputs);
  v.node_->backward = std::move(backward);
  return v;
}

Var Var::op(const char* name, Tensor y, std::vector<Var> inputs, Backward backward) {
  Var v = op_of_sum(name, std::move(y), std::move(inputs),
                    [backward = std::move(backward)](const Tensor& dy, const Tensor&, std::span<const Sink> dx) {
                      backward(dy, dx);
                    });
  v.node_->sums_on_load = false;
  return v;
}

const Tensor& Var::value() const {
  CHECK(node_, "value() of an empty Var");
  return node_->value;
}

bool Var::requires_grad() const { return node_ && node_->wants_grad; }

const Tensor& Var::grad() const {
  CHECK(node_, "grad() of an empty Var");
  return node_->grad;
}
bool Var::grad_written() const { return node_ && node_->written; }
void Var::mark_unwritten() const {
  if (node_) node_->written = false;
}

void Var::backward(const Tensor& seed, const std::function<void(const Var& leaf)>& finished) const {
  CHECK(node_ && value().size() == 1, "backward() starts from a scalar");
  if (!node_->wants_grad) return;
  CHECK(!node_->is_leaf, "backward() from a leaf");

  // Reachable interior nodes in creation order, and how many consumers each leaf still waits for.
  std::map<uint64_t, Var> open;
  std::unordered_map<Node*, int> waiting;
  std::vector<Var> stack{*this};
  open.emplace(node_->order, *this);
  while (!stack.empty()) {
    const Var v = std::move(stack.back());
    stack.pop_back();
    for (const Var& input : v.node_->inputs) {
      if (!input.requires_grad()) continue;
      if (input.node_->is_leaf) {
        ++waiting[input.node_.get()];
      } else if (open.emplace(input.node_->order, input).second) {
        stack.push_back(input);
      }
    }
  }

  node_->grad = Tensor(value().device(), value().shape());
  if (seed) {
    csml::backend(seed).copy({.x = seed.reshape(value().shape()), .y = node_->grad});
  } else {
    csml::backend(value()).fill({.y = node_->grad, .value = 1.f});
  }

  std::vector<Sink> sinks;
  while (!open.empty()) {
    auto last = std::prev(open.end());
    const Var v = std::move(last->second);
    open.erase(last);
    Node& node = *v.node_;
    CHECK(node.backward, "op '{}' was back-propagated twice", node.name);
    if (node.grad) {  // else: no path from the root gave it a gradient
      sinks.clear();
      for (const Var& input : node.inputs) sinks.push_back(input.node_ ? input.node_->sink() : Sink{});
      timed(node.grad.device(), node.name, [&] { node.backward(node.grad, node.grad2, sinks); });
      if (nan_check_enabled())
        for (const Sink& sink : sinks) check_finite(node.name, "gradient", sink.tensor);
    }
    sinks.clear();
    node.grad = node.grad2 = {};
    node.backward = nullptr;
    const std::vector<Var> inputs = std::move(node.inputs);
    node.inputs.clear();
    for (const Var& input : inputs)
      if (input.requires_grad() && input.node_->is_leaf && --waiting[input.node_.get()] == 0 && finished)
        finished(input);
  }
}

}  // namespace csml
