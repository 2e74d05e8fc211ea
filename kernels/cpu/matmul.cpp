#include <dnnl.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"

namespace csml::cpu {

void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
           int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  CHECK(status == dnnl_success, "oneDNN refused a matrix product of {} x {} by {} x {}, status {}", m, k, k, n,
        static_cast<int>(status));
}

void matmul(const Backend::Matmul& args) {
  const Shape &a = args.a.shape, &b = args.b.shape, &c = args.c.shape;
  CHECK(a.rank() == 2 && b.rank() == 2 && c.rank() == 2, "matmul needs matrices, got {} x {} -> {}", a.text(), b.text(),
        c.text());
  const int64_t m = a[args.transpose_a ? 1 : 0], k = a[args.transpose_a ? 0 : 1];
  const int64_t n = b[args.transpose_b ? 0 : 1];
  CHECK(b[args.transpose_b ? 1 : 0] == k && c == (Shape{m, n}), "matmul: {}{} x {}{} -> {} does not fit", a.text(),
        args.transpose_a ? "^T" : "", b.text(), args.transpose_b ? "^T" : "", c.text());
  CHECK(!args.bias || args.bias.shape == Shape{n}, "matmul: bias is {}, must be [{}]", args.bias.shape.text(), n);
  const float *pa = args.a.as<float>(), *pb = args.b.as<float>(), *bias = args.bias.as<float>();
  float* pc = args.c.as<float>();
  if (m == 0 || n == 0) return;

  const bool accumulate = args.write == Write::accumulate;
  const bool prepare = bias || (k == 0 && !accumulate);  // c starts as its old content plus the bias
  if (prepare) {
    parallel_for(m, std::max<int64_t>(1, 32768 / n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = pc + i * n;
        for (int64_t j = 0; j < n; ++j) row[j] = (accumulate ? row[j] : 0.f) + (bias ? bias[j] : 0.f);
      }
    });
  }
  if (k == 0) return;
  sgemm(args.transpose_a, args.transpose_b, m, n, k, 1.f, pa, a[1], pb, b[1], accumulate || prepare ? 1.f : 0.f, pc, n);
}

}  // namespace csml::cpu
