// Ops: differentiable functions of Var, and the plain functions of Tensor that need no gradient. kernels/backend.h
// gives each formula; shapes are checked there. A result has the element type of x (f32, bf16, f16) unless said; losses
// and similarities are f32.
#pragma once

#include <span>
#include <vector>

#include "engine/var.h"
#include "kernels/color.h"

namespace csml {

// ---- differentiable -------------------------------------------------------------------------------------------------

/// x [N,H,W,C], w [K,R,S,C] -> [N,P,Q,K], P = (H + 2*pad - R) / stride + 1
Var conv2d(const Var& x, const Var& w, int stride, int pad);
/// x [N,I], w [O,I], b [O] (may be empty) -> x w^T + b, [N,O]
Var linear(const Var& x, const Var& w, const Var& b);
Var relu(const Var& x);
/// a + b, same shape
Var add(const Var& a, const Var& b);
/// factor * x
Var scale(const Var& x, float factor);
/// x under another shape
Var reshape(const Var& x, Shape shape);
Var max_pool(const Var& x, int window, int stride, int pad);
/// [N,H,W,C] -> [N,C]
Var global_avg_pool(const Var& x);
/// Rows to unit length, in f32 whatever x is.
Var l2_normalize(const Var& x);
/// x in another element type, rounded to nearest; x itself where it has that type.
Var cast(const Var& x, DType dtype);

/// Options of a training batch norm; see Backend::BatchNorm.
struct BatchNormOptions {
  int groups = 1;
  bool relu = false;
  float eps = 1e-5f;
  Tensor batch_mean, batch_var;  // [C]: where this batch's statistics are left; may be empty
};
/// act(batch_norm(x) + residual); residual may be empty.
Var batch_norm(const Var& x, const Var& gamma, const Var& beta, const Var& residual, const BatchNormOptions& options);
/// The same with given statistics; no gradient.
Var batch_norm_inference(const Var& x, const Var& gamma, const Var& beta, const Tensor& mean, const Tensor& var,
                         const Var& residual, bool relu, float eps = 1e-5f);

/// Mean similarities that a loss leaves behind for the log; filled when given.
struct Similarity {
  Tensor positive;  // [P]
  Tensor negative;  // [1]
};
/// Multi-positive InfoNCE of unit rows, -> scalar [1]. query [B,D]; positives P x [B,D] (no gradient); weights [P];
/// queue [K,D] as it is now: the value and the gradient are computed together, so a later write to the queue is safe.
/// query and positives are rounded to the queue's type: with bf16 or f16 the products run on the tensor cores, sums in
/// f32, and the gradient for an upstream of 1 is rounded before it is scaled in f32.
Var info_nce(const Var& query, const std::vector<Tensor>& positives, const Tensor& weights, const Tensor& queue,
             float temperature, Similarity* similarity = nullptr);
/// [P,B] with y[j,i] = query[i] . positives[j][i]. query and each positive [B,D]; gradients reach all of them.
Var row_dots(const Var& query, const std::vector<Var>& positives);
/// Options of multi_positive; see Backend::MultiPositive.
struct MultiPositiveOptions {
  float temperature = 0.2f;
  Backend::Form form = Backend::Form::csml;
  Tensor own{}, ids{};          // i32 [B], [K]: negative n is not one of anchor i's where ids[n] = own[i]; may be empty
  std::vector<Tensor> close{};  // [B,K] each: nor where one of these is above
  float threshold = 1;          // this
};
/// A loss of similarities, -> scalar [1]. positives [P,B], negatives [B,K] (may be empty), weights [P].
Var multi_positive(const Var& positives, const Var& negatives, const Tensor& weights,
                   const MultiPositiveOptions& options, Similarity* similarity = nullptr);
/// The rows of all, in order.
Var concat_rows(const std::vector<Var>& parts);
/// x [N,H,W,C], corner i32 [N,2] -> [N,rows,columns,C]: the window at each image's corner.
Var gather_window(const Var& x, const Tensor& corner, int64_t rows, int64_t columns);
/// Mean softmax cross entropy in f32, -> scalar [1]. logits [M,C], labels i32 [M]; correct [1] is filled when given.
Var cross_entropy(const Var& logits, const Tensor& labels, Tensor* correct = nullptr);

// ---- plain functions ------------------------------------------------------------------------------------------------

void fill(const Tensor& y, float value);
void copy(const Tensor& from, const Tensor& to);
/// sum += factor * scale[0] * x; scale f32 [1] may be empty
void accumulate(const Tensor& x, const Tensor& sum, float factor = 1, const Tensor& scale = {});
/// [x[index[0]], x[index[1]], …]
Tensor gather(const Tensor& x, const Tensor& index);
/// i32 [N,2]: the corner of the window of x [N,H,W,C] that agrees best with key [N,R,S,C]; see Backend::BestWindow.
Tensor best_window(const Tensor& x, const Tensor& key, int stride);
struct TopKResult {
  Tensor scores;  // [M,k] f32, descending
  Tensor index;   // [M,k] i32
};
/// The k largest inner products of each query row with the bank's rows; exclude i32 [M] may be empty.
TopKResult top_k(const Tensor& queries, const Tensor& bank, int k, const Tensor& exclude = {});
/// u8 images [N,H,W,C] -> normalised f32; params f32 [N, ColorParams::kColumns] may be empty.
void augment(const Tensor& images, const Tensor& params, const Tensor& y, const std::array<float, 4>& mean,
             const std::array<float, 4>& std);
/// a with the box (i32 [4] = y0, x0, y1, x1) of b.
Tensor cut_mix(const Tensor& a, const Tensor& b, const Tensor& box);
/// flag i32 [1] = every element of x is finite; accumulate: flag = flag and that
void all_finite(const Tensor& x, const Tensor& flag, Write write = Write::overwrite);
/// y = momentum * y + (1 - momentum) * x unless finite holds 0
void ema(const Tensor& x, const Tensor& y, const Tensor& momentum, const Tensor& finite = {});
/// One step of SGD with momentum (Backend::Sgd) unless finite holds 0; learning_rate [1].
void sgd(const Tensor& grad, const Tensor& param, const Tensor& buffer, const Tensor& learning_rate, float momentum,
         float weight_decay, const Tensor& finite = {});
/// Writes rows at the cursor of a ring and advances it, unless finite holds 0.
void ring_write(const Tensor& rows, const Tensor& ring, const Tensor& cursor, const Tensor& finite = {});

}  // namespace csml
