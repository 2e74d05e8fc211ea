// Comm: what processes say to each other. One process is an implementation, not an `if`.
#pragma once

#include <memory>
#include <string>

#include "engine/tensor.h"

namespace csml {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// In place, over all ranks, f32 or i32.
  virtual void all_reduce_mean(const Tensor& t) = 0;
  virtual void all_reduce_sum(const Tensor& t) = 0;
  virtual void all_reduce_max(const Tensor& t) = 0;
  /// all [size * rows, …] = the ranks' `mine` [rows, …] in rank order.
  virtual void all_gather(const Tensor& mine, const Tensor& all) = 0;
  virtual void broadcast(const Tensor& t, int root) = 0;
  virtual void barrier() = 0;
  /// Between fork() and join() collectives may overlap with other work.
  virtual void fork() = 0;
  virtual void join() = 0;
  /// May its calls stand inside a recorded step?
  virtual bool recordable() const = 0;
  /// Tells the other ranks that this one is lost.
  virtual void abort(const std::string& why) = 0;

  /// This process alone.
  static std::unique_ptr<Comm> local();
};

}  // namespace csml
