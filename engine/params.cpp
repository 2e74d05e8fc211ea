#include "engine/params.h"

#include "kernels/random.h"

namespace csml {

namespace {

constexpr int64_t kAlignment = 16;  // elements: 64 bytes of f32

int64_t lay_out(std::vector<Params::Entry>& entries) {
  int64_t end = 0;
  for (Params::Entry& e : entries) {
    e.offset = end;
    end += (e.shape.size() + kAlignment - 1) / kAlignment * kAlignment;
  }
  return end;
}

void check_new(const std::vector<Params::Entry>& entries, const std::string& name) {
  for (const Params::Entry& e : entries) CHECK(e.name != name, "parameter '{}' was added twice", name);
}

std::vector<float> initial_values(const std::vector<Params::Entry>& entries, int64_t total, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(total), 0.f);
  for (size_t index = 0; index < entries.size(); ++index) {
    const Params::Entry& e = entries[index];
    Random random(seed, Purpose::init, 0, index);
    float* out = values.data() + e.offset;
    for (int64_t i = 0; i < e.shape.size(); ++i) {
      switch (e.init.kind) {
        case Init::Kind::constant:
          out[i] = e.init.value;
          break;
        case Init::Kind::normal:
          out[i] = e.init.value * random.normal();
          break;
        case Init::Kind::uniform:
          out[i] = random.uniform(-e.init.value, e.init.value);
          break;
      }
    }
  }
  return values;
}

}  // namespace

int Params::add(const std::string& name, Shape shape, Init init) {
  CHECK(!master_, "parameter '{}' added after build()", name);
  check_new(entries_, name);
  entries_.push_back({name, shape, init, 0, shape.rank() == 4});
  return static_cast<int>(entries_.size()) - 1;
}

int Params::add_buffer(const std::string& name, Shape shape, float fill) {
  CHECK(!master_, "buffer '{}' added after build()", name);
  check_new(buffer_entries_, name);
  buffer_entries_.push_back({name, shape, Init::constant(fill), 0, false});
  return static_cast<int>(buffer_entries_.size()) - 1;
}

void Params::build(uint64_t seed, bool trainable, DType compute) {
  CHECK(!master_, "build() was called twice");
  const int64_t total = lay_out(entries_), buffer_total = lay_out(buffer_entries_);
  master_ = Tensor::from(device_, {total}, initial_values(entries_, total, seed));
  buffers_ = Tensor::from(device_, {buffer_total}, initial_values(buffer_entries_, buffer_total, seed));
  compute_ = compute == DType::f32 ? master_ : Tensor(device_, {total}, compute);
  update_compute();
  if (trainable) grad_ = Tensor::full(device_, {total}, 0.f);
  for (const Entry& e : entries_) {
    const Tensor value = (e.shape.rank() > 1 ? compute_ : master_).span(e.offset, e.shape);
    vars_.push_back(trainable ? Var::leaf(value, grad_.span(e.offset, e.shape)) : Var(value));
  }
}

void Params::update_compute() const {
  if (compute_type() != DType::f32) backend(compute_).axpy({.x = master_, .y = compute_});
}

Tensor Params::slice(const Tensor& flat, int id) const {
  const Entry& e = buffer_entries_[static_cast<size_t>(id)];
  return flat.span(e.offset, e.shape);
}

int64_t Params::count() const {
  int64_t n = 0;
  for (const Entry& e : entries_) n += e.shape.size();
  return n;
}

void Params::begin_gradients() const {
  for (const Var& v : vars_) v.mark_unwritten();
}

void Params::finish_gradients() const {
  for (const Var& v : vars_)
    if (v.requires_grad() && !v.grad_written()) backend(v.grad()).fill({.y = v.grad(), .value = 0.f});
}

}  // namespace csml
