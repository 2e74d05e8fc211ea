// Convolutions as cuDNN execution plans: which plans a card has for a convolution, and running one. No vendor header in
// here, so that tests/plan_test.cpp can ask for cards that are not in the machine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/types.h"

namespace csml::cuda {

enum class Direction : int { forward, grad_input, grad_weight };
const char* name_of(Direction);

/// Everything a plan depends on: x [n,h,w,c], filter [k,r,s,c], y [n,p,q,k], all three of one type; sums in f32.
/// Pointers given to a plan are multiples of kConvAlignment.
struct ConvShape {
  Direction direction = Direction::forward;
  DType dtype = DType::f32;
  int64_t n = 0, h = 0, w = 0, c = 0, k = 0, r = 0, s = 0, stride = 1, pad = 0;

  int64_t p() const { return (h + 2 * pad - r) / stride + 1; }
  int64_t q() const { return (w + 2 * pad - s) / stride + 1; }
  bool operator==(const ConvShape&) const = default;
  /// "forward bf16 x [64, 56, 56, 64] w [64, 3, 3, 64] stride 1 pad 1"
  std::string text() const;
};

inline constexpr int64_t kConvAlignment = 16;  // bytes

/// Which engines may serve a convolution. Sums in 16 bits are never allowed; neither is, in f32 without tf32, anything
/// less exact than f32 products (TF32, Winograd, FFT).
struct PlanRules {
  bool tf32 = false;           // f32 convolutions may round products' factors to TF32 (10 bits of mantissa)
  bool deterministic = false;  // only engines whose result is the same on every run
};

/// The card that plans are made for.
class Card {
 public:
  /// The card of a cudnnHandle_t, which must outlive the plans.
  static Card present(void* handle);
  /// A card that need not be there, by cuDNN's JSON form of device properties (tests/device/*.json; cuDNN 9.8).
  static Card described(const std::string& json);

  void* handle() const { return handle_; }                // absent for a described card
  void* properties() const { return properties_.get(); }  // absent for a present one

 private:
  void* handle_ = nullptr;
  std::shared_ptr<void> properties_;
};

/// A way to compute one convolution on one card, ready to run.
class ConvPlan {
 public:
  /// "engine 17 (2=1 12=0)": the engine and its settings; the same text means the same computation.
  const std::string& name() const { return name_; }
  size_t workspace_bytes() const { return workspace_; }
  /// x, w, y: values or gradients, whichever the direction reads and writes. handle: that of the plan's card, its
  /// stream set.
  void run(void* handle, const void* x, const void* w, const void* y, void* workspace) const;

 private:
  friend class ConvGraph;
  std::vector<std::shared_ptr<void>> parts_;  // what the descriptor was made of
  std::shared_ptr<void> descriptor_;
  std::string name_;
  size_t workspace_ = 0;
};

/// A convolution as cuDNN's operation graph, with the engines its heuristics propose for a card, best first.
class ConvGraph {
 public:
  ConvGraph(const ConvShape& shape, const Card& card, PlanRules rules);

  int candidates() const { return static_cast<int>(configs_.size()); }
  /// Whether candidate i is compiled when its plan is made, which needs the driver.
  bool is_compiled_late(int i) const { return configs_[i].compiled_late; }
  /// The plan of candidate i. False where cuDNN refuses it; `why` then says so in cuDNN's words.
  bool build(int i, ConvPlan& plan, std::string& why) const;

 private:
  struct Config {
    std::shared_ptr<void> descriptor;
    std::string name;
    bool compiled_late = false;
  };
  const Card card_;
  std::vector<std::shared_ptr<void>> parts_;  // tensors, operation, graph: configs refer to them
  std::vector<Config> configs_;
};

}  // namespace csml::cuda
