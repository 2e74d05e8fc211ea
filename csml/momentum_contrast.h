// MomentumContrast: what MoCo v2 and CsMl share: query and momentum encoder, queue, shuffled batch-norm groups, and the
// commit, the one place where a step changes state (docs/method.md, section 1).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "csml/batch_layout.h"
#include "csml/method.h"
#include "csml/queue.h"
#include "engine/buckets.h"

namespace csml {

class MomentumContrast : public Method {
 public:
  /// The processes of `comm` share every global batch; what each of them holds afterwards is the same.
  MomentumContrast(Device& device, const Config& config, int in_channels, Comm& comm = Comm::alone());

  std::vector<ViewSpec> views() const override { return specs_; }
  void load(const Batch& batch, const StepInfo& info) override;
  void step() override;
  nlohmann::json measure(int64_t steps) override;
  Encoder& query_encoder() override { return f_q_; }
  Encoder& key_encoder() override { return f_k_; }
  std::vector<std::pair<std::string, Tensor>> state() const override;

  // For tests: the gradients and pieces of the last step.
  const Queue& queue() const { return queue_; }
  /// Injects the inputs of a step of one process instead of load(): normalised images per view, permutation per key
  /// view.
  struct Given {
    std::vector<Tensor> images;                      // one [B,S,S,C] per view
    std::vector<std::vector<int32_t>> permutations;  // one per key forward
    std::array<int32_t, 4> box{};
    float lambda = 1;
    std::vector<float> weights;  // own key, partner's key
    float learning_rate = 0;
  };
  void load_given(const Given& given);

 protected:
  /// One InfoNCE of the loss: its name in the log, the anchor's embedding, its two positives with their weights.
  struct Term {
    std::string name;
    Var anchor;
    std::vector<Tensor> positives;
    Tensor weights;  // one per positive
  };

  /// The method's own part: embeds the views and names the terms, whose mean is the loss. enqueue_ must be set.
  virtual std::vector<Term> terms() = 0;
  /// The method's own per-step inputs.
  virtual void load_extra(const StepInfo&) {}
  virtual void load_extra_given(const Given&) {}

  /// Query encoder, batch-norm groups in batch order; its statistics join the commit.
  Var embed_query(const Tensor& images);
  /// Momentum encoder on the batch permuted over the groups, result un-permuted; no gradient. number: which
  /// permutation.
  Tensor embed_key(const Tensor& images, int number);
  Tensor view_images(int view) const {
    const size_t v = static_cast<size_t>(view);
    return given_.empty() ? inputs_[v].images() : given_[v];
  }
  void add_view(ViewSpec spec);

  Device& device_;
  Config config_;
  Encoder f_q_, f_k_;
  Queue queue_;
  Tensor enqueue_;  // this process's keys to push at commit
  std::vector<std::string> term_names_;

 private:
  void commit();
  void average_statistics();
  void load_permutation(int number, const std::vector<int32_t>& permutation);

  Comm& comm_;
  BatchLayout layout_;
  GradientBuckets buckets_;
  std::vector<ViewSpec> specs_;
  std::vector<ViewInput> inputs_;
  std::vector<Tensor> given_;
  std::vector<Tensor> shuffle_, unshuffle_;  // i32 per key view: of this process's images, or of all where they come so
  std::vector<Tensor> query_statistics_, key_statistics_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor learning_rate_, momentum_, statistics_momentum_, finite_;
  // Sums since the last measure(): [terms], [terms x positives], [1]
  Tensor loss_sum_, positive_sum_, negative_sum_;
  Tensor last_query_;  // this process's embeddings of the first view
  float lr_now_ = 0;
};

}  // namespace csml
