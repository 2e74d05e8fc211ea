#include "csml/momentum_contrast.h"

#include <algorithm>
#include <cmath>

#include "data/shuffle.h"
#include "engine/optim.h"

namespace csml {

namespace {

Tensor scalar(Device& device, float value) { return Tensor::full(device, {1}, value); }

/// Mean over dimensions of the standard deviation over the batch, times sqrt(D): 1 for directions spread over the whole
/// sphere, 0 when all embeddings are one point (collapse). Chen & He 2021 (SimSiam) watch the same number.
double feature_spread(const Tensor& embeddings) {
  const int64_t n = embeddings.shape()[0], d = embeddings.shape()[1];
  const std::vector<float> x = embeddings.host<float>();
  double total = 0;
  for (int64_t j = 0; j < d; ++j) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double v = x[static_cast<size_t>(i * d + j)];
      sum += v;
      squares += v * v;
    }
    const double mean = sum / static_cast<double>(n);
    total += std::sqrt(std::max(0.0, squares / static_cast<double>(n) - mean * mean));
  }
  return total / static_cast<double>(d) * std::sqrt(static_cast<double>(d));
}

}  // namespace

MomentumContrast::MomentumContrast(Device& device, const Config& config, int in_channels, Comm& comm)
    : device_(device),
      config_(config),
      f_q_(device, config.model, in_channels, config.train.seed, true),
      f_k_(device, config.model, in_channels, config.train.seed, false),  // the same seed: starts as a copy
      queue_(device, config.method.queue, config.model.dim, config.train.seed, 5),
      comm_(comm),
      layout_(batch_layout(config, comm)),
      buckets_(f_q_.params(), comm),
      optimizer_(Optimizer::make(f_q_.params(), config.optimizer)),
      learning_rate_(scalar(device, 0)),
      momentum_(scalar(device, static_cast<float>(config.method.momentum))),
      statistics_momentum_(scalar(device, 0.9f)),  // torchvision's batch norm: new share 0.1
      finite_(Tensor::from(device, {1}, std::vector<int32_t>{1})),
      positive_sum_(scalar(device, 0)),
      negative_sum_(scalar(device, 0)) {}

void MomentumContrast::add_view(ViewSpec spec) {
  inputs_.emplace_back(device_, layout_.local, spec);
  specs_.push_back(std::move(spec));
}

void MomentumContrast::load(const Batch& batch, const StepInfo& info) {
  CHECK(batch.views.size() == inputs_.size(), "a batch of {} views for a method of {}", batch.views.size(),
        inputs_.size());
  for (size_t v = 0; v < inputs_.size(); ++v) inputs_[v].upload(batch.views[v]);
  for (int number = 0; number < 2; ++number) {
    std::vector<int32_t> permutation = shuffle_permutation(config_.train.seed, info.step, static_cast<uint32_t>(number),
                                                           layout_.global, config_.method.shuffle ? layout_.span : 1);
    if (!layout_.loader_shuffles) {  // whole spans lie here: this process's rows are permuted among themselves
      permutation = {permutation.begin() + layout_.first, permutation.begin() + layout_.first + layout_.local};
      for (int32_t& place : permutation) place -= static_cast<int32_t>(layout_.first);
    }
    load_permutation(number, permutation);
  }
  lr_now_ = static_cast<float>(learning_rate(config_.schedule, info.progress));
  learning_rate_.upload(std::vector<float>{lr_now_});
  load_extra(info);
}

void MomentumContrast::load_given(const Given& given) {
  CHECK(comm_.size() == 1, "given inputs are those of one process");
  given_ = given.images;
  for (size_t number = 0; number < given.permutations.size(); ++number)
    load_permutation(static_cast<int>(number), given.permutations[number]);
  lr_now_ = given.learning_rate;
  learning_rate_.upload(std::vector<float>{lr_now_});
  load_extra_given(given);
}

void MomentumContrast::load_permutation(int number, const std::vector<int32_t>& permutation) {
  const int64_t n = static_cast<int64_t>(permutation.size());
  std::vector<int32_t> inverse(permutation.size());
  for (size_t i = 0; i < permutation.size(); ++i)
    inverse[static_cast<size_t>(permutation[i])] = static_cast<int32_t>(i);
  if (shuffle_.size() <= static_cast<size_t>(number)) {
    shuffle_.push_back(Tensor(device_, {n}, DType::i32));
    unshuffle_.push_back(Tensor(device_, {n}, DType::i32));
  }
  shuffle_[static_cast<size_t>(number)].upload(permutation);
  unshuffle_[static_cast<size_t>(number)].upload(inverse);
}

Var MomentumContrast::embed_query(const Tensor& images) {
  const int64_t n = images.shape()[0];
  const int64_t group = config_.method.bn_group_size > 0 ? config_.method.bn_group_size : n;
  Tensor statistics = Tensor::full(device_, f_q_.params().buffers().shape(), 0.f);  // the gaps stay zero
  query_statistics_.push_back(statistics);
  return f_q_.embed(Var(images), {.training = true, .groups = static_cast<int>(n / group), .statistics = statistics});
}

Tensor MomentumContrast::embed_key(const Tensor& images, int number) {
  const NoGrad no_grad;
  const int64_t n = images.shape()[0];
  const int64_t group = config_.method.bn_group_size > 0 ? config_.method.bn_group_size : n;
  Tensor statistics = Tensor::full(device_, f_k_.params().buffers().shape(), 0.f);  // the gaps stay zero
  key_statistics_.push_back(statistics);
  const Tensor& unshuffle = unshuffle_[static_cast<size_t>(number)];
  const Tensor shuffled = layout_.loader_shuffles ? images : gather(images, shuffle_[static_cast<size_t>(number)]);
  const Tensor keys =
      f_k_.embed(Var(shuffled), {.training = true, .groups = static_cast<int>(n / group), .statistics = statistics})
          .value();
  if (!layout_.loader_shuffles) return gather(keys, unshuffle);
  const Tensor all(device_, keys.shape().with_rows(layout_.global));
  comm_.all_gather(keys, all);
  return gather(all, unshuffle).rows(layout_.first, layout_.local);
}

void MomentumContrast::step() {
  query_statistics_.clear();
  key_statistics_.clear();
  Var total;
  {
    const std::vector<Term> list = terms();
    const int64_t count = static_cast<int64_t>(list.size());
    if (!loss_sum_) {
      loss_sum_ = Tensor::full(device_, {count}, 0.f);
      for (const Term& term : list) term_names_.push_back(term.name);
    }
    for (int64_t t = 0; t < count; ++t) {
      const Term& term = list[static_cast<size_t>(t)];
      Similarity similarity;
      const Var loss = info_nce(term.anchor, term.positives, term.weights, queue_.rows(),
                                static_cast<float>(config_.method.temperature), t == 0 ? &similarity : nullptr);
      accumulate(loss.value(), loss_sum_.span(t, {1}));
      if (t == 0) {
        accumulate(similarity.positive.span(0, {1}), positive_sum_);
        accumulate(similarity.negative, negative_sum_);
        last_query_ = term.anchor.value();
      }
      total = total ? add(total, loss) : loss;
    }
    if (count > 1) total = scale(total, 1.f / static_cast<float>(count));
  }
  buckets_.backward(total);
  commit();
}

void MomentumContrast::average_statistics() {
  // Every process holds as many groups: the mean over all groups is the mean of the processes' means.
  comm_.fork();
  for (const Tensor& s : query_statistics_) comm_.all_reduce_mean(s);
  for (const Tensor& s : key_statistics_) comm_.all_reduce_mean(s);
  comm_.join();
}

void MomentumContrast::commit() {
  average_statistics();
  all_finite(f_q_.params().grad(), finite_);
  comm_.all_reduce_min(finite_);  // all change their state, or none does
  optimizer_->step(learning_rate_, finite_);
  for (const Tensor& s : query_statistics_) ema(s, f_q_.params().buffers(), statistics_momentum_, finite_);
  for (const Tensor& s : key_statistics_) ema(s, f_k_.params().buffers(), statistics_momentum_, finite_);
  // theta_k <- m theta_k + (1 - m) theta_q: due before the next step's key forwards, so it is the end of this one.
  ema(f_q_.params().master(), f_k_.params().master(), momentum_, finite_);
  const Tensor keys(device_, enqueue_.shape().with_rows(layout_.global));
  comm_.all_gather(enqueue_, keys);
  queue_.push(keys, finite_);
}

nlohmann::json MomentumContrast::measure(int64_t steps) {
  CHECK(loss_sum_ && steps > 0, "measure() before the first step");
  for (const Tensor& sum : {loss_sum_, positive_sum_, negative_sum_}) comm_.all_reduce_mean(sum);
  const Tensor embeddings(device_, last_query_.shape().with_rows(layout_.global));
  comm_.all_gather(last_query_, embeddings);
  const double n = static_cast<double>(steps);
  const std::vector<float> losses = loss_sum_.host<float>();
  nlohmann::json out, by_term;
  double total = 0;
  for (size_t t = 0; t < losses.size(); ++t) {
    by_term[term_names_[t]] = losses[t] / n;
    total += losses[t] / n;
  }
  out["loss"] = total / static_cast<double>(losses.size());
  out["loss_terms"] = by_term;
  out["loss_levels"] = {{"res5", out["loss"]}};
  out["chance"] = std::log(static_cast<double>(config_.method.queue) + 1);
  out["positive_similarity"] = positive_sum_.item() / n;
  out["negative_similarity"] = negative_sum_.item() / n;
  out["feature_spread"] = feature_spread(embeddings);
  out["lr"] = lr_now_;
  out["finite"] = finite_.host<int32_t>()[0] == 1;
  fill(loss_sum_, 0);
  fill(positive_sum_, 0);
  fill(negative_sum_, 0);
  return out;
}

std::vector<std::pair<std::string, Tensor>> MomentumContrast::state() const {
  std::vector<std::pair<std::string, Tensor>> all{{"queue.res5", queue_.rows()},
                                                  {"queue.res5.cursor", queue_.cursor()}};
  for (auto& [name, tensor] : optimizer_->state()) all.emplace_back("optimizer." + name, tensor);
  return all;
}

}  // namespace csml
