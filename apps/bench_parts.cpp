// csml bench --part: the parts of a step that the engine has fused kernels for, by size.
#include "apps/bench.h"
#include "csml/method/encoder.h"
#include "engine/ops.h"
#include "engine/optim.h"
#include "engine/precision.h"
#include "engine/step.h"

namespace csml {
namespace {

std::vector<int64_t> sizes(const WorkOptions& o, std::vector<int64_t> otherwise, const char* names) {
  if (o.size.empty()) return otherwise;
  if (o.size.size() != otherwise.size())
    throw UsageError(cat("--size of --part {} takes {} numbers: {}", o.name, otherwise.size(), names));
  return o.size;
}

/// A part whose run is one recorded step.
class Part : public BenchWork {
 public:
  Part(Device& device, const std::string& precision, nlohmann::json about)
      : device_(device),
        compute_(compute_type(precision, device)),
        about_(std::move(about)),
        step_(device, [this] { run_once(); }) {
    about_["precision"] = precision;
  }
  void run() override { step_.run(); }
  int64_t calls() const override { return step_.calls(); }
  nlohmann::json about() const override { return about_; }

 protected:
  virtual void run_once() = 0;
  /// In the element type of this part.
  Tensor computed(const Tensor& x) const { return cast(Var(x), compute_).value(); }

  Device& device_;
  const DType compute_;

 private:
  nlohmann::json about_;
  Step step_;
};

/// The gradient is d loss / d query for an upstream gradient of 1: no loss scale, which would come after its rounding.
class InfoNcePart final : public Part {
 public:
  InfoNcePart(Device& device, const std::string& precision, int64_t b, int64_t k, int64_t d, int64_t p)
      : Part(device, precision,
             {{"case", "info_nce"}, {"queries", b}, {"queue_rows", k}, {"dim", d}, {"positives", p}}),
        queue_(unit_rows(k, d, 0)),
        weights_(Tensor::full(device, {p}, 1.f / static_cast<float>(p))),
        loss_(Tensor::full(device, {1}, 0.f)) {
    if (p > ConstViews::kMax) throw UsageError(cat("--size: {} positives, at most {}", p, ConstViews::kMax));
    const Tensor query = unit_rows(b, d, 1);
    query_ = Var::leaf(query, Tensor::full(device, query.shape(), 0.f));
    for (int64_t j = 0; j < p; ++j) positives_.push_back(unit_rows(b, d, 2 + j));
  }

  void put_inputs(Exchange& exchange) override {
    exchange.note("temperature", kTemperature);
    exchange.put("query", query_.value());
    for (size_t j = 0; j < positives_.size(); ++j) exchange.put(cat("positive.{}", j), positives_[j]);
    exchange.put("weights", weights_);
    exchange.put("queue", queue_);
  }
  bool put_results(Exchange& exchange) override {
    exchange.put("loss", loss_);
    exchange.put("dquery", query_.grad());
    return true;
  }

 private:
  static constexpr float kTemperature = 0.2f;

  Tensor unit_rows(int64_t n, int64_t d, int64_t offset) const {
    return computed(l2_normalize(Var(Tensor::from(device_, Shape{n, d}, bench_noise(n * d, offset)))).value());
  }
  void run_once() override {
    query_.mark_unwritten();
    const Var loss = info_nce(query_, positives_, weights_, queue_, kTemperature);
    copy(loss.value(), loss_);
    loss.backward();
  }

  Tensor queue_, weights_, loss_;
  Var query_;
  std::vector<Tensor> positives_;
};

/// Values in {-1, -3/4, …, 1}: products and sums are exact in every format with f32 sums, so that every correct
/// implementation finds the same rows, ties included.
class TopKPart final : public Part {
 public:
  TopKPart(Device& device, const std::string& precision, int64_t m, int64_t n, int64_t d, int64_t k)
      : Part(device, precision, {{"case", "top_k"}, {"queries", m}, {"rows", n}, {"dim", d}, {"nearest", k}}),
        k_(static_cast<int>(k)),
        queries_(quarters(m, d, 0)),
        rows_(quarters(n, d, 1)) {
    if (k > n) throw UsageError(cat("--size: the {} nearest of {}", k, n));
    std::vector<int32_t> own(static_cast<size_t>(m));
    for (size_t i = 0; i < own.size(); ++i) own[i] = static_cast<int32_t>(i % static_cast<size_t>(n));
    exclude_ = Tensor::from(device, {m}, own);
    scores_ = Tensor::full(device, {m, k}, 0.f);
    index_ = Tensor(device, {m, k}, DType::i32);
  }

  void put_inputs(Exchange& exchange) override {
    exchange.put("queries", queries_);
    exchange.put("rows", rows_);
    exchange.put("exclude", exclude_);
  }
  bool put_results(Exchange& exchange) override {
    exchange.put("scores", scores_);
    exchange.put("index", index_);
    return true;
  }

 private:
  Tensor quarters(int64_t n, int64_t d, uint64_t stream) const {
    Random random(0, Purpose::test, 2, stream);
    std::vector<float> values(static_cast<size_t>(n * d));
    for (float& v : values) v = static_cast<float>(random.below(9)) / 4 - 1;
    return computed(Tensor::from(device_, {n, d}, values));
  }
  void run_once() override {
    const TopKResult found = top_k(queries_, rows_, k_, exclude_);
    copy(found.scores, scores_);
    copy(found.index, index_);
  }

  int k_;
  Tensor queries_, rows_, exclude_, scores_, index_;
};

/// What ends a step (Siamese::commit), without running statistics and queue.
class CommitPart final : public Part {
 public:
  CommitPart(Device& device, const std::string& precision, int64_t n)
      : Part(device, precision, {{"case", "commit"}, {"parameters", n}}),
        params_(device),
        key_(device),
        learning_rate_(Tensor::full(device, {1}, 0.03f)),
        key_momentum_(Tensor::full(device, {1}, 0.999f)),
        finite_(Tensor::from(device, {1}, std::vector<int32_t>{1})),
        loss_scale_(device, compute_, {}) {
    for (Params* p : {&params_, &key_}) {
      p->add("parameters", {n}, Init::normal(0.01f));
      p->build(0, true, compute_);
    }
    optimizer_ = Optimizer::make(params_, {.kind = "sgd", .momentum = kMomentum, .weight_decay = kWeightDecay});
    std::vector<float> gradient = bench_noise(n, 3);
    for (float& g : gradient) g *= static_cast<float>(loss_scale_.read().scale);
    params_.grad().span(0, {n}).upload(gradient);
  }

  void put_inputs(Exchange& exchange) override {
    exchange.note("learning_rate", 0.03);
    exchange.note("momentum", kMomentum);
    exchange.note("weight_decay", kWeightDecay);
    exchange.note("key_momentum", 0.999);
    exchange.put("parameters", params_.master());
    const Tensor unscaled = Tensor::full(device_, params_.grad().shape(), 0.f);
    accumulate(params_.grad(), unscaled, static_cast<float>(1 / loss_scale_.read().scale));
    exchange.put("gradient", unscaled);
  }
  bool put_results(Exchange& exchange) override {
    exchange.put("after", params_.master());
    exchange.put("key", key_.master());
    if (compute_ == DType::f32) return true;
    exchange.put("after.copy", params_.compute());
    exchange.put("key.copy", key_.compute());
    return true;
  }

 private:
  static constexpr float kMomentum = 0.9f, kWeightDecay = 1e-4f;

  void run_once() override {
    all_finite(params_.grad(), finite_);
    optimizer_->step({.learning_rate = learning_rate_,
                      .finite = finite_,
                      .inverse_scale = loss_scale_.inverse(),
                      .average = &key_,
                      .average_momentum = key_momentum_});
    loss_scale_.update(finite_);
  }

  Params params_, key_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor learning_rate_, key_momentum_, finite_;
  LossScale loss_scale_;
};

}  // namespace

std::unique_ptr<BenchWork> make_part(Device& device, const WorkOptions& o) {
  const std::string precision = bench_precision(o);
  if (o.name == "info_nce") {
    const auto s = sizes(o, {256, 65536, 128, 1}, "queries, queue rows, dimensions, positives");
    return std::make_unique<InfoNcePart>(device, precision, s[0], s[1], s[2], s[3]);
  }
  if (o.name == "top_k") {
    const auto s = sizes(o, {256, 65536, 128, 5}, "queries, rows, dimensions, nearest");
    return std::make_unique<TopKPart>(device, precision, s[0], s[1], s[2], s[3]);
  }
  return std::make_unique<CommitPart>(device, precision, sizes(o, {28000000}, "parameters")[0]);
}

}  // namespace csml
