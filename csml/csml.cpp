#include "csml/csml.h"

#include <algorithm>

namespace csml {

CsMl::CsMl(Device& device, const Config& config, int in_channels, Comm& comm)
    : MomentumContrast(device, config, in_channels, comm),
      box_(device, {4}, DType::i32),
      w_(device, {2}),
      w_mix_(device, {2}),
      w_own_(device, {1}) {
  // With the first term alone and no weight on the partner's key this is MoCo, and the partner is not even loaded.
  cross_ = uses("p") || uses("m") || config_.method.weights[1] != 0 || config_.method.warmup_weights[1] != 0;
  add_view({ViewSpec::Source::own, config_.augment, kQ});
  add_view({ViewSpec::Source::own, config_.augment, kK, 0});
  if (!cross_) return;
  add_view({ViewSpec::Source::neighbor, config_.augment, kP});
  add_view({ViewSpec::Source::neighbor, config_.augment, kKp, 1});
}

bool CsMl::uses(const std::string& term) const {
  return std::find(config_.method.terms.begin(), config_.method.terms.end(), term) != config_.method.terms.end();
}

void CsMl::load_extra(const StepInfo& info) {
  const MethodConfig& m = config_.method;
  const CutMixDraw draw = draw_cutmix(config_.train.seed, static_cast<uint64_t>(info.step), config_.augment.crop_size,
                                      static_cast<float>(m.cutmix_alpha));
  const std::vector<double>& w = info.epoch < m.warmup_epochs ? m.warmup_weights : m.weights;
  upload({draw.box[0], draw.box[1], draw.box[2], draw.box[3]}, draw.lambda,
         {static_cast<float>(w[0]), static_cast<float>(w[1])});
}

void CsMl::load_extra_given(const Given& given) { upload(given.box, given.lambda, given.weights); }

void CsMl::upload(const std::array<int32_t, 4>& box, float lambda, const std::vector<float>& weights) {
  box_.upload(std::span<const int32_t>(box));
  w_mix_.upload(std::vector<float>{lambda, 1 - lambda});
  w_.upload(weights);
  w_own_.upload(std::vector<float>{weights[0]});
  lambda_ = lambda;
  weights_now_ = weights;
}

std::vector<MomentumContrast::Term> CsMl::terms() {
  const Tensor q_images = view_images(kQ);
  const Tensor k = embed_key(view_images(kK), 0);
  enqueue_ = k;
  std::vector<Term> list;
  if (!cross_) {
    list.push_back({"q", embed_query(q_images), {k}, w_own_});
    return list;
  }
  const Tensor kp = embed_key(view_images(kKp), 1);
  const Tensor p_images = uses("p") || uses("m") ? view_images(kP) : Tensor();
  if (uses("q")) list.push_back({"q", embed_query(q_images), {k, kp}, w_});
  if (uses("p")) list.push_back({"p", embed_query(p_images), {kp, k}, w_});
  if (uses("m")) list.push_back({"m", embed_query(cut_mix(q_images, p_images, box_)), {k, kp}, w_mix_});
  return list;
}

nlohmann::json CsMl::measure(int64_t steps) {
  nlohmann::json out = MomentumContrast::measure(steps);
  out["lambda"] = lambda_;
  out["weights"] = weights_now_;
  return out;
}

}  // namespace csml
