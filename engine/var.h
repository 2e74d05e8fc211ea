// Var: a Tensor in a define-by-run graph. All of autograd is this header and var.cpp.
//
// An op is a function: the forward call, then the backward lambda right under it (engine/ops.cpp). The lambda gets the
// gradient of its output and one Sink per input, which says whether that input's gradient is wanted and whether to
// overwrite or to accumulate. Nodes run in reverse creation order; a node drops its closure and its inputs when it is
// done, so activations are freed on the way.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/tensor.h"

namespace csml {

/// Where one input's gradient goes. Empty: nobody wants it.
struct Sink {
  Tensor tensor;
  Write write = Write::overwrite;
  explicit operator bool() const { return static_cast<bool>(tensor); }
};
/// The gradient's array as an op's argument that may be absent.
inline View view_of(const Sink& sink) { return sink ? View(sink.tensor) : View{}; }

class Var {
 public:
  using Backward = std::function<void(const Tensor& dy, std::span<const Sink> dx)>;
  /// For ops that sum two incoming gradients on load (dy2 may be empty): saves a pass where paths join.
  using BackwardOfSum = std::function<void(const Tensor& dy, const Tensor& dy2, std::span<const Sink> dx)>;

  Var() = default;
  /// A constant.
  explicit Var(Tensor value);
  /// A leaf whose gradient is written into `grad` (same shape, f32 also where value is in 16 bits): overwritten by the
  /// first contribution after mark_unwritten(), accumulated afterwards.
  static Var leaf(Tensor value, Tensor grad);
  /// The result of an op. A plain constant under NoGrad or where no input wants a gradient.
  static Var op(const char* name, Tensor y, std::vector<Var> inputs, Backward backward);
  static Var op_of_sum(const char* name, Tensor y, std::vector<Var> inputs, BackwardOfSum backward);

  explicit operator bool() const { return static_cast<bool>(node_); }
  const Tensor& value() const;
  const Shape& shape() const { return value().shape(); }
  bool requires_grad() const;
  /// Cuts the graph: the same value, no gradient.
  Var detach() const { return Var(value()); }

  /// Back-propagates from this scalar with the upstream gradient `seed` (f32 [1]; empty: 1). Calls finished(leaf) when
  /// a leaf's gradient is complete for this pass, so that its reduction over processes can start. Consumes the graph.
  void backward(const Tensor& seed = {}, const std::function<void(const Var& leaf)>& finished = {}) const;

  // Leaves:
  const Tensor& grad() const;
  bool grad_written() const;
  void mark_unwritten() const;

  /// Identity of the node, for tests and maps.
  const void* id() const { return node_.get(); }

  struct Node;

 private:
  std::shared_ptr<Node> node_;
};

/// While one is alive on this thread, ops build no graph.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

/// While one is alive on this thread, every op's result and gradients are checked: the first with a NaN or an infinity
/// throws Error that names the op. Reads the device after each op. CSML_NAN=1 in the environment: always.
class NanCheck {
 public:
  NanCheck();
  ~NanCheck();
  NanCheck(const NanCheck&) = delete;
  NanCheck& operator=(const NanCheck&) = delete;

 private:
  bool before_;
};

}  // namespace csml
