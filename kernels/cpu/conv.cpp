#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"

namespace csml::cpu {

namespace {

using dnnl::memory;
using Tag = memory::format_tag;

enum class Kind : int { forward, grad_input, grad_weight };

/// Everything a oneDNN convolution depends on: x [n,h,w,c], filter [k,r,s,c], y [n,p,q,k].
struct Key {
  Kind kind = Kind::forward;
  int64_t n = 0, h = 0, w = 0, c = 0, k = 0, r = 0, s = 0, stride = 1, pad = 0;
  int64_t threads = 1;  // oneDNN fixes the division of work when it creates a primitive

  int64_t p() const { return (h + 2 * pad - r) / stride + 1; }
  int64_t q() const { return (w + 2 * pad - s) / stride + 1; }
  int64_t window() const { return r * s * c; }
  bool is_pointwise() const { return r == 1 && s == 1 && pad == 0; }
  bool operator==(const Key&) const = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    size_t hash = static_cast<size_t>(key.kind);
    for (int64_t value : {key.n, key.h, key.w, key.c, key.k, key.r, key.s, key.stride, key.pad, key.threads})
      hash = hash * 1000003 + static_cast<size_t>(value);
    return hash;
  }
};

Key check_conv(const char* op, Kind kind, const ConstView& x, const ConstView& w, const ConstView& y, int stride,
               int pad) {
  CHECK(x.shape.rank() == 4 && w.shape.rank() == 4 && y.shape.rank() == 4,
        "{}: needs images [N,H,W,C] and filters [K,R,S,C], got x {}, w {}, y {}", op, x.shape.text(), w.shape.text(),
        y.shape.text());
  CHECK(x.dtype == DType::f32 && w.dtype == DType::f32 && y.dtype == DType::f32, "{}: the CPU computes in f32, got {}",
        op, name_of(x.dtype));
  CHECK(stride >= 1 && pad >= 0, "{}: stride {}, pad {}", op, stride, pad);
  const Key key{kind,       x.shape[0], x.shape[1], x.shape[2], x.shape[3],           w.shape[0],
                w.shape[1], w.shape[2], stride,     pad,        omp_get_max_threads()};
  CHECK(key.h + 2 * pad >= key.r && key.w + 2 * pad >= key.s, "{}: x {} with pad {} is smaller than filter {}", op,
        x.shape.text(), pad, w.shape.text());
  CHECK(w.shape[3] == key.c && y.shape == (Shape{key.n, key.p(), key.q(), key.k}),
        "{}: x {} and w {} with stride {} and pad {} do not give y {}", op, x.shape.text(), w.shape.text(), stride, pad,
        y.shape.text());
  return key;
}

/// One prepared convolution. Activations are plain NHWC everywhere, the filter is in the primitive's own layout and is
/// reordered from or to [K,R,S,C] on every call (weights change every step).
struct Plan {
  dnnl::primitive conv;
  dnnl::reorder reorder;             // filter: plain -> own (forward, grad_input) or own -> plain (grad_weight)
  dnnl::reorder reorder_accumulate;  // grad_weight: plain += own
  memory x, y, own, plain, scratchpad;
  bool is_plain = false;  // the primitive reads [K,R,S,C] as it is: nothing to reorder
  std::string implementation;
};

/// oneDNN's engine, the prepared convolutions and their working memory; one per calling thread, so that calls from
/// several threads never share scratch.
class Convolutions {
 public:
  static Convolutions& of_this_thread() {
    thread_local Convolutions instance;
    return instance;
  }

  Plan& plan(const Key& key) {
    const auto found = plans_.find(key);
    if (found != plans_.end()) return found->second;
    constexpr size_t kMaxPlans = 1024;  // far above what one run meets; bounds runs with ever-changing shapes
    if (plans_.size() >= kMaxPlans) plans_.clear();
    try {
      return plans_.emplace(key, create(key)).first->second;
    } catch (const dnnl::error& e) {
      throw Error(
          cat("oneDNN cannot prepare the convolution of x [{}, {}, {}, {}] with w [{}, {}, {}, {}], stride {}, "
              "pad {}: {}",
              key.n, key.h, key.w, key.c, key.k, key.r, key.s, key.c, key.stride, key.pad, e.what()));
    }
  }

  /// Points the plan's memories at this call's arrays and the shared scratch.
  void bind(Plan& plan, const void* x, const void* w, const void* y) {
    plan.x.set_data_handle(const_cast<void*>(x), stream_);
    plan.y.set_data_handle(const_cast<void*>(y), stream_);
    plan.plain.set_data_handle(const_cast<void*>(w), stream_);
    plan.own.set_data_handle(plan.is_plain ? const_cast<void*>(w) : filter_.get<char>(plan.own.get_desc().get_size()),
                             stream_);
    // oneDNN 2.6's AVX2 convolution of few channels (seen with 4 to 4, 3x3) reads and writes past the scratchpad that it
    // asks for, as far as channels padded to eight would reach; that corrupted the heap. Twice a small one is enough for
    // any number of channels above four; large ones are of reductions, which keep inside.
    constexpr size_t kMostBeyond = size_t{1} << 20, kLeastBeyond = 4096;
    const size_t asked = plan.scratchpad.get_desc().get_size();
    const size_t room = asked + std::min(asked, kMostBeyond) + kLeastBeyond;
    plan.scratchpad.set_data_handle(scratchpad_.get<char>(static_cast<int64_t>(room)), stream_);
  }

  float* activation(int64_t count) { return activation_.get<float>(count); }
  dnnl::stream& stream() { return stream_; }

 private:
  Plan create(const Key& key) {
    using dnnl::algorithm;
    constexpr auto kF32 = memory::data_type::f32;
    // "any" for an activation next to NHWC ones makes oneDNN fall back to its reference code: plain NHWC throughout.
    const memory::desc x({key.n, key.c, key.h, key.w}, kF32, Tag::nhwc);
    const memory::desc y({key.n, key.k, key.p(), key.q()}, kF32, Tag::nhwc);
    const memory::desc any({key.k, key.c, key.r, key.s}, kF32, Tag::any);
    const memory::desc plain({key.k, key.c, key.r, key.s}, kF32, Tag::ohwi);
    const memory::dims strides{key.stride, key.stride}, pad{key.pad, key.pad};
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);

    const dnnl::convolution_forward::primitive_desc forward(
        {dnnl::prop_kind::forward_training, algorithm::convolution_direct, x, any, y, strides, pad, pad}, attr,
        engine_);
    Plan plan;
    memory::desc own;
    const auto finish = [&](const auto& desc, const memory::desc& weights) {
      own = weights;
      plan.scratchpad = memory(desc.scratchpad_desc(), engine_, nullptr);
      plan.implementation = desc.impl_info_str();
    };
    if (key.kind == Kind::forward) {
      plan.conv = dnnl::convolution_forward(forward);
      finish(forward, forward.weights_desc());
    } else if (key.kind == Kind::grad_input) {
      const dnnl::convolution_backward_data::primitive_desc desc(
          {algorithm::convolution_direct, x, any, y, strides, pad, pad}, attr, engine_, forward);
      plan.conv = dnnl::convolution_backward_data(desc);
      finish(desc, desc.weights_desc());
    } else {
      const dnnl::convolution_backward_weights::primitive_desc desc(
          {algorithm::convolution_direct, x, any, y, strides, pad, pad}, attr, engine_, forward);
      plan.conv = dnnl::convolution_backward_weights(desc);
      finish(desc, desc.diff_weights_desc());
    }
    plan.is_plain = key.kind != Kind::grad_weight && own == plain;
    plan.x = memory(x, engine_, nullptr);
    plan.y = memory(y, engine_, nullptr);
    plan.own = memory(own, engine_, nullptr);
    plan.plain = memory(plain, engine_, nullptr);
    if (key.kind == Kind::grad_weight) {
      plan.reorder = dnnl::reorder(plan.own, plan.plain);
      dnnl::post_ops sum;
      sum.append_sum(1.f);
      dnnl::primitive_attr accumulate;
      accumulate.set_post_ops(sum);
      plan.reorder_accumulate = dnnl::reorder(plan.own, plan.plain, accumulate);
    } else {
      plan.reorder = dnnl::reorder(plan.plain, plan.own);
    }
    return plan;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<Key, Plan, KeyHash> plans_;
  Scratch filter_, activation_, scratchpad_;
};

/// True where a matrix product over gathered windows beats oneDNN's convolutions (measured on AVX-512, 1 and 2
/// threads): those reorder the filter on every call, which pays only with enough pixels, and are slow on very small
/// images.
bool by_matrix_product(const Key& key, bool accumulate) {
  const int64_t pixels = key.p() * key.q();
  if (key.is_pointwise()) {
    const bool strided_sum = key.kind == Kind::grad_input && accumulate && key.stride > 1;
    return key.n * pixels <= 2048 || strided_sum;
  }
  const bool few = pixels <= 16 && key.c >= 256;
  if (key.kind == Kind::grad_weight) return few || pixels <= 4;
  if (key.kind == Kind::grad_input) return key.stride > 1 && pixels <= 16 && key.c >= 128;
  return few && key.h * key.w > 1;  // on one pixel most of a window is padding, which oneDNN skips
}

/// column[n,p,q, r,s,c] = x[n, p*stride+r-pad, q*stride+s-pad, c], 0 outside; x and column start at the first of
/// `images`.
void gather_windows(const Key& key, int64_t images, const float* x, float* column) {
  const int64_t p = key.p(), q = key.q();
  parallel_for(images * p, 1, [=](int64_t begin, int64_t end) {
    float* to = column + begin * q * key.window();
    for (int64_t row = begin; row < end; ++row) {
      const float* image = x + row / p * key.h * key.w * key.c;
      for (int64_t j = 0; j < q; ++j) {
        for (int64_t r = 0; r < key.r; ++r) {
          const int64_t h = row % p * key.stride + r - key.pad;
          for (int64_t s = 0; s < key.s; ++s, to += key.c) {
            const int64_t w = j * key.stride + s - key.pad;
            const size_t bytes = static_cast<size_t>(key.c) * sizeof(float);
            if (h < 0 || h >= key.h || w < 0 || w >= key.w)
              std::memset(to, 0, bytes);
            else
              std::memcpy(to, image + (h * key.w + w) * key.c, bytes);
          }
        }
      }
    }
  });
}

/// The transpose of gather_windows: x (+)= every window's values at their pixels.
void scatter_windows(const Key& key, int64_t images, const float* column, bool accumulate, float* x) {
  const int64_t p = key.p(), q = key.q(), size = key.h * key.w * key.c;
  parallel_for(images, 1, [=](int64_t begin, int64_t end) {
    if (!accumulate) std::fill(x + begin * size, x + end * size, 0.f);
    const float* from = column + begin * p * q * key.window();
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t i = 0; i < p * q * key.r * key.s; ++i, from += key.c) {
        const int64_t s = i % key.s, r = i / key.s % key.r, pixel = i / (key.s * key.r);
        const int64_t h = pixel / q * key.stride + r - key.pad, w = pixel % q * key.stride + s - key.pad;
        if (h < 0 || h >= key.h || w < 0 || w >= key.w) continue;
        float* to = x + n * size + (h * key.w + w) * key.c;
#pragma omp simd
        for (int64_t c = 0; c < key.c; ++c) to[c] += from[c];
      }
    }
  });
}

/// The convolution or gradient as matrix products over windows, a block of images at a time to bound the scratch. x, w,
/// y are values or gradients, whichever the kind reads; the one it writes is not const in the caller.
void matrix_product(const Key& key, bool accumulate, float* x, float* w, float* y) {
  constexpr int64_t kMaxColumn = int64_t{8} << 20;  // floats
  thread_local Scratch scratch;
  const int64_t pixels = key.p() * key.q(), window = key.window();
  const bool direct = key.is_pointwise() && key.stride == 1;  // windows are the pixels themselves
  const int64_t block = direct ? key.n : std::clamp<int64_t>(kMaxColumn / (pixels * window), 1, key.n);
  float* column = direct ? nullptr : scratch.get<float>(block * pixels * window);
  for (int64_t n = 0; n < key.n; n += block) {
    const int64_t images = std::min(block, key.n - n), rows = images * pixels;
    float* block_x = x + n * key.h * key.w * key.c;
    float* block_y = y + n * pixels * key.k;
    float* windows = direct ? block_x : column;
    if (key.kind == Kind::grad_input) {
      sgemm(false, false, rows, window, key.k, 1.f, block_y, key.k, w, window, direct && accumulate ? 1.f : 0.f,
            windows, window);
      if (!direct) scatter_windows(key, images, column, accumulate, block_x);
      continue;
    }
    if (!direct) gather_windows(key, images, block_x, column);
    if (key.kind == Kind::forward)
      sgemm(false, true, rows, key.k, window, 1.f, windows, window, w, window, 0.f, block_y, key.k);
    else
      sgemm(true, false, key.k, window, rows, 1.f, block_y, key.k, windows, window, accumulate || n > 0 ? 1.f : 0.f, w,
            window);
  }
}

float* mutable_data(const ConstView& view) { return const_cast<float*>(view.as<float>()); }

Key key_of(const Backend::Conv2d& args) {
  return check_conv("conv2d", Kind::forward, args.x, args.w, args.y, args.stride, args.pad);
}
Key key_of(const Backend::Conv2dGradInput& args) {
  return check_conv("conv2d_grad_input", Kind::grad_input, args.dx, args.w, args.dy, args.stride, args.pad);
}
Key key_of(const Backend::Conv2dGradWeight& args) {
  return check_conv("conv2d_grad_weight", Kind::grad_weight, args.x, args.dw, args.dy, args.stride, args.pad);
}

std::string implementation_of(const Key& key, bool accumulate) {
  if (by_matrix_product(key, accumulate)) return "sgemm over windows";
  return Convolutions::of_this_thread().plan(key).implementation;
}

}  // namespace

void conv2d(const Backend::Conv2d& args) {
  const Key key = key_of(args);
  if (args.y.size() == 0) return;
  if (by_matrix_product(key, false))
    return matrix_product(key, false, mutable_data(args.x), mutable_data(args.w), args.y.as<float>());
  auto& all = Convolutions::of_this_thread();
  Plan& plan = all.plan(key);
  all.bind(plan, args.x.data, args.w.data, args.y.data);
  if (!plan.is_plain) plan.reorder.execute(all.stream(), plan.plain, plan.own);
  plan.conv.execute(all.stream(), {{DNNL_ARG_SRC, plan.x},
                                   {DNNL_ARG_WEIGHTS, plan.own},
                                   {DNNL_ARG_DST, plan.y},
                                   {DNNL_ARG_SCRATCHPAD, plan.scratchpad}});
  all.stream().wait();
}

void conv2d_grad_input(const Backend::Conv2dGradInput& args) {
  const Key key = key_of(args);
  const int64_t count = args.dx.size();
  if (count == 0) return;
  const bool accumulate = args.write == Write::accumulate;
  float* dx = args.dx.as<float>();
  if (by_matrix_product(key, accumulate))
    return matrix_product(key, accumulate, dx, mutable_data(args.w), mutable_data(args.dy));
  auto& all = Convolutions::of_this_thread();
  Plan& plan = all.plan(key);
  float* target = accumulate ? all.activation(count) : dx;  // oneDNN only overwrites
  all.bind(plan, target, args.w.data, args.dy.data);
  if (!plan.is_plain) plan.reorder.execute(all.stream(), plan.plain, plan.own);
  plan.conv.execute(all.stream(), {{DNNL_ARG_DIFF_SRC, plan.x},
                                   {DNNL_ARG_WEIGHTS, plan.own},
                                   {DNNL_ARG_DIFF_DST, plan.y},
                                   {DNNL_ARG_SCRATCHPAD, plan.scratchpad}});
  all.stream().wait();
  if (accumulate) {
    parallel_for(count, 32768, [=](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) dx[i] += target[i];
    });
  }
}

void conv2d_grad_weight(const Backend::Conv2dGradWeight& args) {
  const Key key = key_of(args);
  if (args.dw.size() == 0) return;
  const bool accumulate = args.write == Write::accumulate;
  if (key.n == 0) {  // a sum over no images
    if (!accumulate) fill({.y = args.dw, .value = 0});
    return;
  }
  if (by_matrix_product(key, accumulate))
    return matrix_product(key, accumulate, mutable_data(args.x), args.dw.as<float>(), mutable_data(args.dy));
  auto& all = Convolutions::of_this_thread();
  Plan& plan = all.plan(key);
  all.bind(plan, args.x.data, args.dw.data, args.dy.data);
  plan.conv.execute(all.stream(), {{DNNL_ARG_SRC, plan.x},
                                   {DNNL_ARG_DIFF_WEIGHTS, plan.own},
                                   {DNNL_ARG_DIFF_DST, plan.y},
                                   {DNNL_ARG_SCRATCHPAD, plan.scratchpad}});
  (accumulate ? plan.reorder_accumulate : plan.reorder).execute(all.stream(), plan.own, plan.plain);
  all.stream().wait();
}

std::string conv_implementation(const Backend::Conv2d& args) { return implementation_of(key_of(args), false); }
std::string conv_implementation(const Backend::Conv2dGradInput& args) {
  return implementation_of(key_of(args), args.write == Write::accumulate);
}
std::string conv_implementation(const Backend::Conv2dGradWeight& args) {
  return implementation_of(key_of(args), args.write == Write::accumulate);
}

}  // namespace csml::cpu
