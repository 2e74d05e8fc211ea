#include "csml/method/siamese.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "data/shuffle.h"
#include "engine/optim.h"
#include "kernels/random.h"

namespace csml {

namespace {

Tensor scalar(Device& device, float value) { return Tensor::full(device, {1}, value); }

std::vector<int> slots_with_keys(const Plan& plan) {
  std::vector<int> slots;
  for (const Plan::Term& term : plan.terms)
    for (const int key : term.keys)
      if (std::find(slots.begin(), slots.end(), key) == slots.end()) slots.push_back(key);
  // As views come: the partner's key after the own one, whichever term names it first.
  std::stable_sort(slots.begin(), slots.end(), [&](int a, int b) {
    const auto rank = [&](int slot) {  // keys of direction 0 before those of direction 1
      for (const Plan::Term& term : plan.terms)
        if (term.direction == 0 && std::find(term.keys.begin(), term.keys.end(), slot) != term.keys.end()) return 0;
      return 1;
    };
    return std::pair(rank(a), a) < std::pair(rank(b), b);
  });
  return slots;
}

}  // namespace

Siamese::Siamese(Device& device, const Config& config, int in_channels, Plan plan, Comm& comm)
    : device_(device),
      config_(config),
      base_(base_of(config.method)),
      plan_(std::move(plan)),
      levels_(levels_of(config)),
      compute_(compute_type(config.train.precision, device)),
      key_slots_(slots_with_keys(plan_)),
      f_q_(device, config.model, in_channels, config.train.seed, true, encoder_parts(config), compute_),
      comm_(comm),
      layout_(batch_layout(config, comm)),
      buckets_(f_q_.params(), comm, static_cast<int64_t>(config.comm.bucket_mib * (1 << 20))),
      optimizer_(Optimizer::make(f_q_.params(), config.optimizer)),
      loss_scale_(device, compute_, config.train.loss_scale),
      box_(device, {4}, DType::i32),
      weights_(device, {Plan::kWeights}),
      learning_rate_(scalar(device, 0)),
      momentum_(scalar(device, static_cast<float>(config.method.momentum))),
      statistics_momentum_(scalar(device, 0.9f)),  // torchvision's batch norm: new share 0.1
      finite_(Tensor::from(device, {1}, std::vector<int32_t>{1})),
      counts_(scalar(device, 1)),
      zero_(scalar(device, 0)),
      total_sum_(scalar(device, 0)),
      positive_sum_(scalar(device, 0)),
      negative_sum_(scalar(device, 0)),
      momentum_now_(static_cast<float>(config.method.momentum)) {
  const uint64_t seed = config.train.seed;
  if (base_.momentum_encoder)  // the same seed: starts as a copy
    f_k_.emplace(device, config.model, in_channels, seed, false, encoder_parts(levels_, false), compute_);
  for (const Level& level : levels_) {
    if (base_.queue)
      queues_.emplace_back(device, config.method.queue, config.model.dim, seed, static_cast<uint32_t>(level.stage + 2));
    corners_.push_back(
        Tensor::from(device, {layout_.local, 2}, std::vector<int32_t>(2 * static_cast<size_t>(layout_.local))));
    if (level.window > 0 && !base_.momentum_encoder)
      throw UsageError(
          cat("method.alignment = \"{}\" needs a base with a momentum encoder, {} has none; use \"global\"",
              config.method.alignment, base_.name));
  }
  for (const ViewSpec& spec : plan_.views) inputs_.emplace_back(device, layout_.local, spec, compute_);
  if (layout_.loader_shuffles && plan_.directions == 2)
    throw UsageError(
        "a symmetrised loss needs its views in the batch's order, and the shuffle reaches over processes: set "
        "method.shuffle=false, or method.shuffle_span to the images of one process");
  std::vector<int32_t> own, ids;
  for (int64_t i = 0; i < layout_.local; ++i) own.push_back(static_cast<int32_t>(layout_.first + i));
  // A partner's row has the id of its sample: the anchor's own pair is no negative.
  for (size_t copies = base_.in_batch() ? bank_slots(0).size() : 1; copies > 0; --copies)
    for (int64_t i = 0; i < layout_.global; ++i) ids.push_back(static_cast<int32_t>(i));
  own_ = Tensor::from(device, {layout_.local}, own);
  ids_ = Tensor::from(device, {static_cast<int64_t>(ids.size())}, ids);
  for (const Level& level : levels_)
    for (const Plan::Term& term : plan_.terms)
      if (!term.crop || level.name == levels_[0].name) term_names_.emplace_back(level.name, term.name);
  loss_sum_ = Tensor::full(device, {static_cast<int64_t>(term_names_.size())}, 0.f);
  if (comm_.size() > 1) all_queries_ = Tensor(device, {layout_.local / layout_.parts * comm_.size(), config.model.dim});
  load_draw({});
}

// ---- inputs of a step -----------------------------------------------------------------------------------------------

void Siamese::load(const Batch& batch, const StepInfo& info) {
  CHECK(batch.views.size() == inputs_.size(), "a batch of {} views for a method of {}", batch.views.size(),
        inputs_.size());
  for (size_t v = 0; v < inputs_.size(); ++v) inputs_[v].upload(batch.views[v]);
  const MethodConfig& m = config_.method;
  for (size_t number = 0; f_k_ && number < key_slots_.size(); ++number) {
    std::vector<int32_t> permutation = shuffle_permutation(config_.train.seed, info.step, static_cast<uint32_t>(number),
                                                           layout_.global, m.shuffle ? layout_.span : 1);
    if (!layout_.loader_shuffles) {  // whole spans lie here: this process's rows are permuted among themselves
      permutation = {permutation.begin() + layout_.first, permutation.begin() + layout_.first + layout_.local};
      for (int32_t& place : permutation) place -= static_cast<int32_t>(layout_.first);
    }
    load_permutation(static_cast<int>(number), permutation);
  }
  for (size_t l = 0; l < levels_.size(); ++l) {
    if (levels_[l].window == 0) continue;
    Random random(config_.train.seed, Purpose::patch, static_cast<uint64_t>(info.step), 0,
                  static_cast<uint32_t>(levels_[l].stage));
    const auto places = static_cast<uint32_t>(levels_[l].side - levels_[l].window + 1);
    const auto y = static_cast<int32_t>(random.below(places)), x = static_cast<int32_t>(random.below(places));
    load_corner(l, {y, x});
  }
  lr_now_ = static_cast<float>(learning_rate(config_.schedule, info.progress));
  learning_rate_.upload(std::vector<float>{lr_now_});
  momentum_now_ = static_cast<float>(m.momentum);
  if (m.momentum_schedule == "cosine")  // BYOL: 1 - (1 - m) (cos(pi e / E) + 1) / 2
    momentum_now_ = static_cast<float>(
        1 -
        (1 - m.momentum) * (std::cos(std::numbers::pi * std::min(1.0, info.progress / config_.train.epochs)) + 1) / 2);
  momentum_.upload(std::vector<float>{momentum_now_});
  load_draw(plan_.draw ? plan_.draw(config_, info) : StepDraw{});
}

void Siamese::load_given(const Given& given) {
  CHECK(comm_.size() == 1, "given inputs are those of one process");
  given_ = given.images;
  for (size_t number = 0; number < given.permutations.size(); ++number)
    load_permutation(static_cast<int>(number), given.permutations[number]);
  for (size_t l = 0; l < given.corners.size(); ++l) load_corner(l, given.corners[l]);
  lr_now_ = given.learning_rate;
  learning_rate_.upload(std::vector<float>{lr_now_});
  StepDraw draw{.box = given.box, .lambda = given.lambda, .mixed = {given.lambda, 1 - given.lambda}};
  if (!given.weights.empty()) draw.pair = given.weights;
  load_draw(draw);
}

void Siamese::load_draw(const StepDraw& draw) {
  box_.upload(std::span<const int32_t>(draw.box));
  weights_.upload(std::vector<float>{1, draw.pair[0], draw.pair[1], draw.mixed[0], draw.mixed[1]});
  draw_ = draw;
}

void Siamese::load_corner(size_t level, std::array<int32_t, 2> corner) {
  std::vector<int32_t> all;
  for (int64_t i = 0; i < layout_.local; ++i) all.insert(all.end(), corner.begin(), corner.end());
  corners_.at(level).upload(all);
}

void Siamese::load_permutation(int number, const std::vector<int32_t>& permutation) {
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

// ---- the step -------------------------------------------------------------------------------------------------------

void Siamese::step() {
  query_statistics_.clear();
  key_statistics_.clear();
  if (f_k_)
    for (size_t number = 0; number < key_slots_.size(); ++number)
      keys_[key_slots_[number]] = make_key(key_slots_[number], static_cast<int>(number));
  enqueue_.clear();
  if (!queues_.empty())
    for (const Level& level : levels_) {
      std::vector<Var> rows{keys_.at(plan_.names.k).embedding.at(level.stage)};
      if (plan_.directions == 2) rows.push_back(keys_.at(plan_.names.q).embedding.at(level.stage));
      const NoGrad no_grad;
      enqueue_.push_back(concat_rows(rows).value());
    }
  const float share = 1.f / static_cast<float>(layout_.parts);
  for (part_ = 0; part_ < layout_.parts; ++part_) {
    Var total = total_loss();
    accumulate(total.value(), total_sum_, share, counts_);
    if (layout_.parts > 1) total = scale(total, share);
    const bool last = part_ == layout_.parts - 1;
    // From here the graph alone holds what backward needs, and drops it on the way.
    images_.clear();
    anchors_.clear();
    if (last) keys_.clear();
    banks_.clear();
    buckets_.backward(total, loss_scale_.seed(), {.first = part_ == 0, .last = last});
  }
  part_ = 0;
  average_parts(query_statistics_);
  commit();
}

void Siamese::average_parts(std::vector<Statistics>& list) {
  const auto parts = static_cast<size_t>(layout_.parts);
  if (parts == 1) return;
  const size_t forwards = list.size() / parts;
  for (size_t i = 0; i < forwards; ++i) {
    const Tensor mean = Tensor::full(device_, list[i].values.shape(), 0.f);
    for (size_t p = 0; p < parts; ++p) accumulate(list[p * forwards + i].values, mean, 1.f / static_cast<float>(parts));
    list[i].values = mean;
  }
  list.resize(forwards);
}

void Siamese::average_statistics() {
  // Every process holds as many groups: the mean over all groups is the mean of the processes' means.
  comm_.fork();
  for (const Statistics& s : query_statistics_) comm_.all_reduce_mean(s.values);
  for (const Statistics& s : key_statistics_) comm_.all_reduce_mean(s.values);
  comm_.join();
}

void Siamese::commit() {
  average_statistics();
  all_finite(f_q_.params().grad(), finite_, Write::accumulate);
  comm_.all_reduce_min(finite_);  // all change their state, or none does
  // theta_k <- m theta_k + (1 - m) theta_q: due before the next step's key forwards, so it is the end of this one. The
  // predictors, which it lacks, are the last of theta_q.
  optimizer_->step({.learning_rate = learning_rate_,
                    .finite = finite_,
                    .inverse_scale = loss_scale_.inverse(),
                    .average = f_k_ ? &f_k_->params() : nullptr,
                    .average_momentum = momentum_});
  const auto update = [&](const std::vector<Statistics>& list, const Tensor& running) {
    for (const Statistics& s : list)
      ema(s.values, running.span(s.range.first, {s.range.count}), statistics_momentum_, finite_);
  };
  update(query_statistics_, f_q_.params().buffers());
  if (f_k_) update(key_statistics_, f_k_->params().buffers());
  for (size_t l = 0; l < queues_.size(); ++l) {
    const Tensor keys(device_, enqueue_[l].shape().with_rows(enqueue_[l].shape()[0] * comm_.size()));
    comm_.all_gather(enqueue_[l], keys);
    queues_[l].push(keys, finite_);
  }
  loss_scale_.update(finite_);
  // 0 behind a step without a finite gradient: the next one is in vain and takes place later, its losses count then.
  fill(counts_, 0);
  ema(weights_.span(0, {1}), counts_, zero_, finite_);
}

std::vector<std::pair<std::string, Tensor>> Siamese::state() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (size_t l = 0; l < queues_.size(); ++l) {
    all.emplace_back("queue." + levels_[l].name, queues_[l].rows());
    all.emplace_back("queue." + levels_[l].name + ".cursor", queues_[l].cursor());
  }
  for (auto& [name, tensor] : optimizer_->state()) all.emplace_back("optimizer." + name, tensor);
  for (auto& named : loss_scale_.state()) all.push_back(std::move(named));
  return all;
}

}  // namespace csml
