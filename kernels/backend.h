// Backend: everything a device can do, on one page. Implemented twice, in mirrored files: kernels/cpu and kernels/cuda.
//
// Conventions. Arrays are dense and row-major; images [N, H, W, C], filters [K, R, S, C], features [N, D]. Element type
// f32 unless said. Inputs are ConstView, outputs View; an absent view means "not given" or "not wanted". Outputs never
// alias inputs unless said. Every call checks its shapes and throws csml::Error. Calls are ordered on one stream.
// What changes between two runs of a recorded step is an array (learning rate, weights, boxes, permutations);
// what does not is a C++ value. `finite` arguments: i32 [1] in device memory; where it holds 0 the call changes
// nothing.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/color.h"
#include "kernels/readback.h"
#include "kernels/types.h"

namespace csml {

/// A recorded sequence of calls. run() repeats them on the same memory with the same values.
class Replay {
 public:
  virtual ~Replay() = default;
  virtual void run() = 0;
  /// Calls (CPU) or kernels, copies and fills (GPU) of one run.
  virtual int64_t calls() const = 0;
};

/// A short list of views, held by value so that a recorded call owns its arguments.
struct ConstViews {
  static constexpr int kMax = 8;
  std::array<ConstView, kMax> item{};
  int count = 0;

  void push_back(const ConstView& v) {
    CHECK(count < kMax, "at most {} views in a list", kMax);
    item[count++] = v;
  }
  const ConstView& operator[](int i) const { return item[i]; }
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;

  // ---- memory -------------------------------------------------------------------------------------------------------
  virtual void* allocate(size_t bytes) = 0;  // 64-byte aligned; throws when there is none
  virtual void release(void* data) = 0;
  /// Bytes that allocate() has given out, scratch memory of the backend included: now and at most so far. Zeros where
  /// the backend does not count them.
  struct Memory {
    size_t now = 0, peak = 0;
  };
  virtual Memory memory() const { return {}; }
  virtual void upload(void* device, const void* host, size_t bytes) = 0;  // never recorded
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void synchronize() = 0;
  /// For values of `bytes` bytes, up to a few pages.
  virtual std::unique_ptr<Readback> readback(size_t bytes) {
    return std::make_unique<DownloadedReadback>(
        bytes, [this](void* host, const void* device, size_t count) { download(host, device, count); });
  }
  /// Runs work once and returns a Replay that repeats its calls: same pointers, same values.
  virtual std::unique_ptr<Replay> record(const std::function<void()>& work) = 0;
  /// Runs `call` on the host, in the order of the kernels around it, and again in every replay of a recording it stands
  /// in: how communication over host memory joins a step. Not for devices that record their own instructions only.
  virtual void host_call(const std::function<void()>& call) {
    synchronize();
    call();
  }
  /// The stream that calls are queued on, as the vendor's handle: a communicator orders its work behind it, and the
  /// training loop keeps a second step in flight. Null where a call has done its work when it returns. Every backend
  /// says which of the two it is: one that queues and answers null would have its gradients reduced before they are
  /// written.
  virtual void* stream() const = 0;

  // ---- elementwise --------------------------------------------------------------------------------------------------
  /// y[i] = value
  struct Fill {
    View y{};
    float value = 0;
  };
  virtual void fill(const Fill&) = 0;
  /// y[i] = x[i]; same type and size.
  struct Copy {
    ConstView x{};
    View y{};
  };
  virtual void copy(const Copy&) = 0;
  /// The same on a second stream: after the calls before it and beside those after it, until join_copies(). Stands in
  /// for the traffic of a collective (engine/comm_rehearsal.h). A device without a second stream copies at once.
  virtual void copy_beside(const Copy& a) { copy(a); }
  virtual void join_copies() {}
  /// y[i] (+)= alpha * scale[0] * x[i]; scale f32 [1], absent = 1. On a GPU x and y may differ in type (f32, bf16,
  /// f16).
  struct Axpy {
    ConstView x{};
    View y{};
    float alpha = 1;
    ConstView scale{};
    Write write = Write::overwrite;
  };
  virtual void axpy(const Axpy&) = 0;
  /// y[i] = max(x[i], 0)
  struct Relu {
    ConstView x{};
    View y{};
  };
  virtual void relu(const Relu&) = 0;
  /// dx[i] (+)= y[i] > 0 ? dy[i] : 0
  struct ReluGrad {
    ConstView dy{}, y{};
    View dx{};
    Write write = Write::overwrite;
  };
  virtual void relu_grad(const ReluGrad&) = 0;
  /// y[j] (+)= sum_i x[i, j], x [M, N] (any leading dimensions), y [N]
  struct ColumnSum {
    ConstView x{};
    View y{};
    Write write = Write::overwrite;
  };
  virtual void column_sum(const ColumnSum&) = 0;
  /// y[i, ...] = x[index[i], ...]; index i32 [M]; any element type. Out-of-range indices are an error.
  struct Gather {
    ConstView x{}, index{};
    View y{};
  };
  virtual void gather(const Gather&) = 0;

  // ---- convolution, matrix product, pooling -------------------------------------------------------------------------
  /// y[n,p,q,k] = sum_{r,s,c} x[n, p*stride+r-pad, q*stride+s-pad, c] * w[k,r,s,c];  P = (H + 2*pad - R) / stride + 1
  struct Conv2d {
    ConstView x{}, w{};
    View y{};
    int stride = 1, pad = 0;
  };
  virtual void conv2d(const Conv2d&) = 0;
  /// dx[n,h,w,c] (+)= sum over k,r,s of dy[n,p,q,k] * w[k,r,s,c] with h = p*stride+r-pad, w = q*stride+s-pad
  struct Conv2dGradInput {
    ConstView dy{}, w{};
    View dx{};
    int stride = 1, pad = 0;
    Write write = Write::overwrite;
  };
  virtual void conv2d_grad_input(const Conv2dGradInput&) = 0;
  /// dw[k,r,s,c] (+)= sum_{n,p,q} dy[n,p,q,k] * x[n, p*stride+r-pad, q*stride+s-pad, c];  dw f32 whatever x and dy are
  struct Conv2dGradWeight {
    ConstView dy{}, x{};
    View dw{};
    int stride = 1, pad = 0;
    Write write = Write::overwrite;
  };
  virtual void conv2d_grad_weight(const Conv2dGradWeight&) = 0;
  /// c[i,j] (+)= sum_l a'[i,l] * b'[l,j] + bias[j];  a' = a or its transpose, b' likewise; bias [N] may be absent
  struct Matmul {
    ConstView a{}, b{}, bias{};
    View c{};
    bool transpose_a = false, transpose_b = false;
    Write write = Write::overwrite;
  };
  virtual void matmul(const Matmul&) = 0;
  /// y[n,p,q,c] = max over the window of x[n, p*stride+r-pad, q*stride+s-pad, c]; argmax u8, y's shape: r*window+s of
  /// the first maximum in row order.
  struct MaxPool {
    ConstView x{};
    View y{}, argmax{};
    int window = 3, stride = 2, pad = 1;
  };
  virtual void max_pool(const MaxPool&) = 0;
  struct MaxPoolGrad {
    ConstView dy{}, argmax{};
    View dx{};
    int window = 3, stride = 2, pad = 1;
    Write write = Write::overwrite;
  };
  virtual void max_pool_grad(const MaxPoolGrad&) = 0;
  /// y[n,c] = mean_{h,w} x[n,h,w,c]
  struct GlobalAvgPool {
    ConstView x{};
    View y{};
  };
  virtual void global_avg_pool(const GlobalAvgPool&) = 0;
  /// dx[n,h,w,c] (+)= dy[n,c] / (H*W)
  struct GlobalAvgPoolGrad {
    ConstView dy{};
    View dx{};
    Write write = Write::overwrite;
  };
  virtual void global_avg_pool_grad(const GlobalAvgPoolGrad&) = 0;

  // ---- normalisation ------------------------------------------------------------------------------------------------
  /// Grouped batch norm, fused with residual add and ReLU. x [N, ..., C] is cut along N into `groups` equal contiguous
  /// groups g, each normalised with its own statistics over its M = N/groups * (rest) rows:
  ///   y = act(gamma[c] * (x - mean[g,c]) * rstd[g,c] + beta[c] + residual),  rstd = 1/sqrt(var + eps), var biased
  ///   (1/M)
  /// batch_mean[c] = mean_g mean[g,c];  batch_var[c] = mean_g var[g,c] * M/(M-1)   (what running statistics average)
  struct BatchNorm {
    ConstView x{}, gamma{}, beta{}, residual{};
    View y{};
    View mean{}, rstd{};             // [groups, C], kept for backward
    View batch_mean{}, batch_var{};  // [C], may be absent
    int groups = 1;
    float eps = 1e-5f;
    bool relu = false;
  };
  virtual void batch_norm(const BatchNorm&) = 0;
  /// Gradient of the above. d = (dy + dy2) * [y > 0 if relu];  dresidual (+)= d;  xhat = (x - mean) * rstd
  ///   dbeta[c] (+)= sum d;  dgamma[c] (+)= sum d * xhat   (over all groups)
  ///   dx (+)= gamma * rstd * (d - mean_g(d) - xhat * mean_g(d * xhat))
  /// dy2 may be absent (a residual's two incoming gradients are summed here, on load). y is read only where relu.
  struct BatchNormGrad {
    ConstView dy{}, dy2{}, x{}, y{}, gamma{}, beta{}, mean{}, rstd{};
    View dx{}, dresidual{}, dgamma{}, dbeta{};
    int groups = 1;
    bool relu = false;
    bool has_residual = false;  // y had a residual: its sign cannot be recomputed from x alone
    Write dx_write = Write::overwrite, dresidual_write = Write::overwrite;
    Write dgamma_write = Write::overwrite, dbeta_write = Write::overwrite;
  };
  virtual void batch_norm_grad(const BatchNormGrad&) = 0;
  /// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual) with given statistics mean, var [C]; y may be x.
  struct BatchNormInference {
    ConstView x{}, gamma{}, beta{}, mean{}, var{}, residual{};
    View y{};
    float eps = 1e-5f;
    bool relu = false;
  };
  virtual void batch_norm_inference(const BatchNormInference&) = 0;
  // The same in parts, for one group whose rows lie on several processes (engine/sync_batch_norm.h): what crosses
  // processes are arrays of [P, 2, C], one part of [2, C] from each of P processes.
  /// moments [2, C] over the M rows of x [N, ..., C]:  moments[0,c] = mean of x,  moments[1,c] = sum (x - mean)^2
  struct BatchNormMoments {
    ConstView x{};
    View moments{};
  };
  virtual void batch_norm_moments(const BatchNormMoments&) = 0;
  /// Statistics of P parts of `rows` rows each from their moments, parts [P, 2, C] (Chan, Golub & LeVeque 1979).
  /// mean, rstd [1, C], batch_mean, batch_var [C] (may be absent) as BatchNorm has them.
  struct BatchNormMerge {
    ConstView parts{};
    View mean{}, rstd{}, batch_mean{}, batch_var{};
    int64_t rows = 0;
    float eps = 1e-5f;
  };
  virtual void batch_norm_merge(const BatchNormMerge&) = 0;
  /// y = act(gamma[c] * (x - mean[c]) * rstd[c] + beta[c] + residual) with given mean, rstd [1, C].
  struct BatchNormApply {
    ConstView x{}, gamma{}, beta{}, residual{}, mean{}, rstd{};
    View y{};
    bool relu = false;
  };
  virtual void batch_norm_apply(const BatchNormApply&) = 0;
  /// First half of the gradient, d as in BatchNormGrad: sums [2, C] = sum d, sum d * (x - mean);  dresidual (+)= d;
  /// dbeta (+)= sum d;  dgamma (+)= rstd * sum d * (x - mean), over the rows that are here.
  struct BatchNormGradSums {
    ConstView dy{}, dy2{}, x{}, y{}, gamma{}, beta{}, mean{}, rstd{};
    View sums{}, dresidual{}, dgamma{}, dbeta{};
    bool relu = false, has_residual = false;
    Write dresidual_write = Write::overwrite, dgamma_write = Write::overwrite, dbeta_write = Write::overwrite;
  };
  virtual void batch_norm_grad_sums(const BatchNormGradSums&) = 0;
  /// Second half, from the sums of P parts of as many rows as are here, parts [P, 2, C], M = P * rows:
  ///   dx (+)= gamma * rstd * (d - sum_P(d) / M - (x - mean) * rstd^2 * sum_P(d * (x - mean)) / M)
  struct BatchNormGradApply {
    ConstView dy{}, dy2{}, x{}, y{}, gamma{}, beta{}, mean{}, rstd{}, parts{};
    View dx{};
    bool relu = false, has_residual = false;
    Write write = Write::overwrite;
  };
  virtual void batch_norm_grad_apply(const BatchNormGradApply&) = 0;
  /// y[i,:] = x[i,:] / max(||x[i,:]||_2, eps);  norm [M] = that denominator
  struct L2Normalize {
    ConstView x{};
    View y{}, norm{};
    float eps = 1e-12f;
  };
  virtual void l2_normalize(const L2Normalize&) = 0;
  /// dx[i,:] (+)= (dy[i,:] - (dy[i,:] . y[i,:]) y[i,:]) / norm[i]
  struct L2NormalizeGrad {
    ConstView dy{}, y{}, norm{};
    View dx{};
    Write write = Write::overwrite;
  };
  virtual void l2_normalize_grad(const L2NormalizeGrad&) = 0;

  // ---- losses and search --------------------------------------------------------------------------------------------
  /// Multi-positive InfoNCE, one (K+1)-way softmax per positive (Seed the Views, official code; docs/method.md):
  ///   s_j = q_i . b_j[i] / T,  Z = sum_n exp(q_i . n / T),  loss = 1/B sum_i sum_j w_j * (log(exp(s_j) + Z) - s_j)
  /// query [B,D] and each positive [B,D], queue [K,D]: unit rows. weights [P]. One pass over the queue with a running
  /// log-sum-exp; memory O(B*D), never the B x K logits.
  ///   dquery[i] = 1/(B*T) * ( sum_j w_j (P_j - 1) b_j[i] + sum_n c exp(q_i.n/T) n ),  P_j = exp(s_j)/(exp(s_j)+Z),
  ///   c = sum_j w_j / (exp(s_j) + Z):  d loss / d query for an upstream gradient of 1, computed in the same pass.
  struct InfoNce {
    ConstView query{};
    ConstViews positives{};
    ConstView weights{}, queue{};
    float temperature = 0.2f;
    View loss{};                 // [1]
    View dquery{};               // [B,D], may be absent
    View positive_similarity{};  // [P]: mean_i q_i . b_j[i], may be absent
    View negative_similarity{};  // [1]: mean_{i,n} q_i . n, may be absent
  };
  virtual void info_nce(const InfoNce&) = 0;
  /// loss = mean_i -log softmax(logits[i])[labels[i]];  dlogits = d loss / d logits for upstream 1 (may be absent);
  /// correct [1] = number of rows whose arg max (first of equals) is the label (may be absent). labels i32 [M].
  struct CrossEntropy {
    ConstView logits{}, labels{};
    View loss{}, dlogits{}, correct{};
  };
  virtual void cross_entropy(const CrossEntropy&) = 0;
  /// The k largest inner products of each query with the bank, exact, descending, equal scores by lower index.
  /// queries [M,D], bank [N,D], exclude i32 [M]: a bank row each query must skip (-1: none; absent: none).
  /// scores [M,k], index i32 [M,k]; where fewer than k rows have a finite score the rest is -infinity and -1. Works
  /// block by block; never holds M x N scores.
  struct TopK {
    ConstView queries{}, bank{}, exclude{};
    View scores{}, index{};
    int k = 1;
  };
  virtual void top_k(const TopK&) = 0;

  /// y[i] = a[i,:] . b[i,:];  a, b [N,D], y [N]
  struct RowDot {
    ConstView a{}, b{};
    View y{};
  };
  virtual void row_dot(const RowDot&) = 0;
  /// y[i,:] (+)= scale[i] * x[i,:];  x, y [N,D], scale [N]
  struct ScaleRows {
    ConstView x{}, scale{};
    View y{};
    Write write = Write::overwrite;
  };
  virtual void scale_rows(const ScaleRows&) = 0;
  /// Forms of a loss with several positives (docs/method.md, "Forms of the loss").
  enum class Form { csml, out, in, mil, cosine };
  /// Loss of given similarities. Per anchor i, with s_j = positives[j,i] / T and Z = sum of exp(negatives[i,n] / T)
  /// over the negatives that count; W = sum_j w_j, u_j = w_j / max w, U = sum_j u_j exp(s_j), D = U + Z:
  ///   csml    sum_j w_j (log(exp(s_j) + Z) - s_j)        out  sum_j w_j (log D - s_j)
  ///   in      W (log D - log sum_j w_j / W exp(s_j))      mil  W (log D - log U)
  ///   cosine  sum_j w_j (2 - 2 positives[j,i]), no negatives
  /// loss = mean_i of that; all weights 0: 0. Negative n does not count for anchor i where ids[n] = own[i], nor where
  /// close[l][i,n] > threshold for any l.
  struct MultiPositive {
    ConstView positives{};   // [P,B]
    ConstView negatives{};   // [B,K], absent: none
    ConstView weights{};     // [P]
    ConstView own{}, ids{};  // i32 [B], [K]; absent: none left out
    ConstViews close{};      // [B,K] each
    float threshold = 1;     // for close
    float temperature = 0.2f;
    Form form = Form::csml;
    View loss{};                 // [1]
    View dpositives{};           // [P,B]: d loss / d positives for an upstream gradient of 1, may be absent
    View dnegatives{};           // [B,K], may be absent
    View positive_similarity{};  // [P]: mean_i positives[j,i], may be absent
    View negative_similarity{};  // [1]: mean of the negatives that count (0 where none does), may be absent
  };
  virtual void multi_positive(const MultiPositive&) = 0;

  // ---- windows of feature maps (multi-level views, docs/method.md) --------------------------------------------------
  /// y[n,r,s,:] = x[n, corner[n,0] + r, corner[n,1] + s, :];  x [N,H,W,C], corner i32 [N,2], y [N,R,S,C]. A window that
  /// leaves the map is an error.
  struct GatherWindow {
    ConstView x{}, corner{};
    View y{};
  };
  virtual void gather_window(const GatherWindow&) = 0;
  /// dx[n,h,w,:] (+)= dy[n, h - corner[n,0], w - corner[n,1], :] inside the window, 0 outside
  struct GatherWindowGrad {
    ConstView dy{}, corner{};
    View dx{};
    Write write = Write::overwrite;
  };
  virtual void gather_window_grad(const GatherWindowGrad&) = 0;
  /// corner[n] = (y, x) that maximises sum_{r,s} cos(x[n, y+r, x+s, :], key[n,r,s,:]), the first of equals in row
  /// order, over y in {0, stride, 2 stride, …, H-R} (the last one always) and x likewise.  x [N,H,W,C], key [N,R,S,C],
  /// corner i32 [N,2]. A pixel of norm 0 has cosine 0.
  struct BestWindow {
    ConstView x{}, key{};
    View corner{};
    int stride = 1;
  };
  virtual void best_window(const BestWindow&) = 0;

  // ---- commit: the only calls that change state; `finite` 0: only update_loss_scale does
  // ------------------------------
  /// flag [1] i32 = 1 if every x[i] is finite, else 0; accumulate: flag = flag and that.
  struct AllFinite {
    ConstView x{};
    View flag{};
    Write write = Write::overwrite;
  };
  virtual void all_finite(const AllFinite&) = 0;
  /// PyTorch's SGD, and in the same pass over memory what follows from the new parameters. Flat buffers of N elements:
  ///   d = inverse_scale * grad + weight_decay * param;  buffer = momentum * buffer + d (a zero buffer starts it);
  ///   param -= lr * buffer
  ///   average = m * average + (1 - m) * param over its K <= N elements, m = average_momentum (a momentum encoder)
  ///   param_copy = param, average_copy = average, rounded: both bf16 or both f16
  /// learning_rate, inverse_scale (absent: 1), average_momentum f32 [1]. Average and copies may be absent. The same
  /// bits as this call without them, ema() and a conversion after it.
  struct Sgd {
    ConstView grad{};
    View param{}, buffer{};
    ConstView learning_rate{}, finite{};
    float momentum = 0.9f, weight_decay = 0;
    ConstView inverse_scale{};
    View average{};
    ConstView average_momentum{};
    View param_copy{}, average_copy{};
  };
  virtual void sgd(const Sgd&) = 0;
  /// LARS (You et al. 2017; as in MoCo v3): per segment s = [offsets[s], offsets[s+1]) of the flat buffers:
  ///   adapt[s] = 1: d = grad + weight_decay * param, d *= trust * ||param|| / ||d|| (1 where either norm is 0)
  ///   adapt[s] = 0 (biases, batch norm): d = grad, no decay
  ///   buffer = momentum * buffer + d;  param -= lr * buffer.       offsets i64 [S+1], adapt f32 [S]
  /// inverse_scale f32 [1] multiplies grad (absent: 1).
  struct Lars {
    ConstView grad{};
    View param{}, buffer{};
    ConstView offsets{}, adapt{}, learning_rate{}, finite{};
    float momentum = 0.9f, weight_decay = 0, trust = 1e-3f;
    ConstView inverse_scale{};
  };
  virtual void lars(const Lars&) = 0;
  /// AdamW (Loshchilov & Hutter 2019, decoupled decay): m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; t = ++step[0]
  ///   param = param * (1 - lr * weight_decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).  step i64 [1]
  /// g = inverse_scale * grad; inverse_scale f32 [1] (absent: 1).
  struct AdamW {
    ConstView grad{};
    View param{}, first{}, second{}, step{};
    ConstView learning_rate{}, finite{};
    float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0.01f;
    ConstView inverse_scale{};
  };
  virtual void adamw(const AdamW&) = 0;
  /// y[i] = momentum[0] * y[i] + (1 - momentum[0]) * x[i]     (momentum encoder, running statistics); momentum f32 [1]
  struct Ema {
    ConstView x{};
    View y{};
    ConstView momentum{}, finite{};
  };
  virtual void ema(const Ema&) = 0;
  /// Dynamic loss scaling by powers of two (engine/precision.h). finite i32 [1]:
  ///   1: steps += 1; at `interval` of them scale = min(2 scale, largest) and steps = 0
  ///   0 and scale > smallest: scale = max(scale / 2, smallest), steps = 0, skipped += 1, finite = 1
  ///   0 otherwise: nothing
  /// scale f32 [2] = scale, 1 / scale;  counters i64 [2] = steps, skipped
  struct UpdateLossScale {
    View scale{}, counters{}, finite{};
    int interval = 2000;
    float smallest = 1, largest = 16777216;
  };
  virtual void update_loss_scale(const UpdateLossScale&) = 0;
  /// queue[(cursor + i) mod K] = rows[i] for i in order (also for B > K: the last K rows stay);  cursor = (cursor + B)
  /// mod K.  rows [B,D], queue [K,D], cursor i64 [1]
  struct RingWrite {
    ConstView rows{};
    View queue{}, cursor{};
    ConstView finite{};
  };
  virtual void ring_write(const RingWrite&) = 0;

  // ---- augmentation -------------------------------------------------------------------------------------------------
  /// y[n,h,w,c] = (color(images[n]/255; params[n]) - mean[c]) / std[c].  images u8 [N,H,W,C], C = 3 or 1;
  /// params f32 [N, ColorParams::kColumns] (absent: only normalise); computed in float, values clamped to [0,1] after
  /// each jitter. With C = 1 saturation, hue and gray do nothing. Blur: Gaussian, radius ceil(3 sigma), reflected
  /// edges.
  struct Augment {
    ConstView images{}, params{};
    View y{};
    std::array<float, 4> mean{}, std{1, 1, 1, 1};
  };
  virtual void augment(const Augment&) = 0;
  /// CutMix: y = a, with rows [y0,y1) and columns [x0,x1) of b. box i32 [4] = y0, x0, y1, x1, one for all images.
  struct CutMix {
    ConstView a{}, b{}, box{};
    View y{};
  };
  virtual void cut_mix(const CutMix&) = 0;
};

}  // namespace csml
