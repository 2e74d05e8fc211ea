// Params: the parameters and running statistics of one network, in flat buffers, under torchvision's names.
#pragma once

#include <string>
#include <vector>

#include "engine/var.h"

namespace csml {

/// How a parameter starts.
struct Init {
  enum class Kind { constant, normal, uniform };
  Kind kind = Kind::constant;
  float value = 0;  // constant: the value; normal: standard deviation; uniform: half width

  static Init constant(float value) { return {Kind::constant, value}; }
  static Init normal(float std) { return {Kind::normal, std}; }
  static Init uniform(float half_width) { return {Kind::uniform, half_width}; }
};

/// One network's state. Layers register what they need (add, add_buffer) and keep the returned number; build() then
/// allocates the flat buffers and initialises them. Each parameter starts at a multiple of 16 elements; the gaps are
/// zero in every buffer and stay so.
///   master()  f32, all parameters       grad()  f32, their gradients, same layout
///   compute() what networks multiply by: master() itself, or in bf16 or f16 a copy of it that optimizers keep up
///   buffers() f32, all running statistics
/// In 16 bits the weights of convolutions and matrix products (rank 2 and more) are read from compute(); biases and
/// batch norm's parameters stay f32.
class Params {
 public:
  struct Entry {
    std::string name;
    Shape shape;
    Init init;
    int64_t offset = 0;
    bool is_conv = false;  // [K,R,S,C] here, [K,C,R,S] in torchvision's files
  };

  explicit Params(Device& device) : device_(device) {}
  Params(const Params&) = delete;
  Params& operator=(const Params&) = delete;

  int add(const std::string& name, Shape shape, Init init);
  int add_buffer(const std::string& name, Shape shape, float fill);
  /// trainable = false: no gradient buffer; parameters are constants (the momentum encoder). compute: f32, bf16 or f16.
  void build(uint64_t seed, bool trainable, DType compute = DType::f32);

  const Var& parameter(int id) const { return vars_[static_cast<size_t>(id)]; }
  Tensor buffer(int id) const { return slice(buffers_, id); }
  /// Buffer `id`'s part of a flat tensor laid out like buffers(), e.g. the statistics one forward leaves.
  Tensor slice(const Tensor& flat, int id) const;

  const Tensor& master() const { return master_; }
  const Tensor& compute() const { return compute_; }
  DType compute_type() const { return compute_.dtype(); }
  /// To be called whenever master() was written by another than an optimizer.
  void update_compute() const;
  const Tensor& grad() const { return grad_; }
  const Tensor& buffers() const { return buffers_; }
  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<Entry>& buffer_entries() const { return buffer_entries_; }
  Device& device() const { return device_; }
  /// Number of parameters, gaps not counted.
  int64_t count() const;

  /// Before a backward pass (the first of an optimizer step): the next gradients overwrite.
  void begin_gradients() const;
  /// After the last backward pass: zeroes what no gradient reached.
  void finish_gradients() const;

 private:
  Device& device_;
  std::vector<Entry> entries_, buffer_entries_;
  std::vector<Var> vars_;
  Tensor master_, compute_, grad_, buffers_;
};

}  // namespace csml
