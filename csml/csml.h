// CsMl's cross-sample views (Xu et al., "Seed the Views"; the authors' released experiment; docs/method.md, section 2).
//   x_i with its drawn neighbour x_j;  q, k = views of x_i;  p, kp = views of x_j;  m = CutMix(q, p)
//   CE(a, b) = InfoNCE of anchor a and positive b against the queue
//   L_q = w0 CE(q,k)  + w1 CE(q,kp)      L_p = w0 CE(p,kp) + w1 CE(p,k)      L_m = lambda CE(m,k) + (1-lambda) CE(m,kp)
//   L = (L_q + L_p + L_m) / 3;  only k is enqueued.
#pragma once

#include "csml/momentum_contrast.h"

namespace csml {

class CsMl final : public MomentumContrast {
 public:
  CsMl(Device& device, const Config& config, int in_channels, Comm& comm = Comm::alone());
  bool needs_neighbors() const override { return cross_; }
  nlohmann::json measure(int64_t steps) override;

 private:
  enum View { kQ = 0, kK = 1, kP = 2, kKp = 3 };
  std::vector<Term> terms() override;
  void load_extra(const StepInfo& info) override;
  void load_extra_given(const Given& given) override;
  bool uses(const std::string& term) const;
  void upload(const std::array<int32_t, 4>& box, float lambda, const std::vector<float>& weights);

  bool cross_;        // the neighbour is used at all
  Tensor box_;        // i32 [4]
  Tensor w_, w_mix_;  // [2]: (w0, w1) and (lambda, 1 - lambda)
  Tensor w_own_;      // [1]: w0 where the neighbour is not used
  float lambda_ = 1;
  std::vector<float> weights_now_;
};

}  // namespace csml
