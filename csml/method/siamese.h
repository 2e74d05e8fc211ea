// Siamese: trains an encoder by comparing views of images: executes a Plan (views and terms) over a Base (loss,
// momentum encoder, negatives), at every level. commit() is the one place where a step changes state (docs/method.md).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csml/method/batch_layout.h"
#include "csml/method/levels.h"
#include "csml/method/method.h"
#include "csml/method/plan.h"
#include "csml/method/queue.h"
#include "engine/buckets.h"
#include "engine/host_copy.h"
#include "engine/precision.h"

namespace csml {

class Siamese final : public Method {
 public:
  /// The processes of `comm` share every global batch; what each of them holds afterwards is the same.
  Siamese(Device& device, const Config& config, int in_channels, Plan plan, Comm& comm = Comm::alone());

  std::vector<ViewSpec> views() const override { return plan_.views; }
  void load(const Batch& batch, const StepInfo& info) override;
  void step() override;
  Tensor finite() const override { return finite_; }
  void go_on() override {
    finite_.upload(std::vector<int32_t>{1});
    counts_.upload(std::vector<float>{1});
  }
  void begin_measure(int64_t steps) override;
  nlohmann::json end_measure() override;
  Encoder& query_encoder() override { return f_q_; }
  Encoder& key_encoder() override { return f_k_ ? *f_k_ : f_q_; }
  bool needs_neighbors() const override { return plan_.neighbors; }
  std::vector<std::pair<std::string, Tensor>> state() const override;

  // For tests.
  const Queue& queue(size_t level = 0) const { return queues_.at(level); }
  /// The inputs of a step of one process instead of load()'s: normalised images per view, permutation per key.
  struct Given {
    std::vector<Tensor> images;                      // one [B,S,S,C] per view
    std::vector<std::vector<int32_t>> permutations;  // one per key forward
    std::array<int32_t, 4> box{};
    float lambda = 1;
    std::vector<float> weights;  // own key, partner's key
    float learning_rate = 0;
    std::vector<std::array<int32_t, 2>> corners;  // key window per level; empty: (0, 0)
  };
  void load_given(const Given& given);

 private:
  /// What an encoder makes of one slot; levels by their stage.
  struct Anchor {
    Stages stages;
    std::map<int, Var> embedding;  // of whole maps
  };
  struct Key {
    std::map<int, Var> embedding;  // in the batch's order
    std::map<int, Tensor> window;  // the map's key window, likewise
  };
  /// Batch statistics of one forward of one part of an encoder.
  struct Statistics {
    Tensor values;  // laid out like `first, count` of the running ones
    Encoder::Range range;
  };

  /// What begin_measure() leaves for end_measure().
  struct Measured {
    int64_t steps = 0, dim = 0;
    float lr = 0, momentum = 0;
    StepDraw draw;
    HostCopy losses, total, positive, negative, embeddings, finite;
  };

  /// Of the part of the batch that is computed now.
  Tensor images(int slot);
  /// Of part `part` in the order in which keys are computed.
  Tensor key_images(int slot, int number, int part);
  Forward forward_of(Encoder& encoder, Encoder::Range range, int64_t n, std::vector<Statistics>& list, bool keep);
  Anchor& anchor(int slot);
  Var project_query(const Level& level, const Var& x, bool keep);
  Var anchor_embedding(const Level& level, int slot);
  /// The anchor's patch that agrees best with the key's window, embedded.
  Var anchor_patch(const Level& level, int slot, const Tensor& window);
  /// Of all rows of this process, part by part.
  Key make_key(int slot, int number);
  /// Of the part of the batch that is computed now.
  Var key_embedding(const Level& level, int slot);
  Tensor key_window(const Level& level, int slot);
  /// One entry for each forward: the mean over its parts, which lie one after the other.
  void average_parts(std::vector<Statistics>& list);
  /// Rows that were computed in permuted order, in the batch's order.
  Tensor unshuffled(const Tensor& rows, int number);
  /// The rows of all processes, in the batch's order; the gradient of the whole batch flows back. The one place where
  /// negatives cross processes.
  Var gather_keys(const Var& rows);
  /// Whose embeddings are the in-batch negatives of a direction.
  std::vector<int> bank_slots(int direction) const;
  Var bank(const Level& level, size_t level_index, int direction);
  bool by_patches(const Level& level, const Plan::Term& term, int key) const;
  Var term_loss(const Level& level, size_t level_index, const Plan::Term& term, Similarity* similarity);
  Var total_loss();
  void commit();
  void average_statistics();
  void load_permutation(int number, const std::vector<int32_t>& permutation);
  void load_draw(const StepDraw& draw);
  void load_corner(size_t level, std::array<int32_t, 2> corner);
  /// [P] of its keys.
  Tensor weights_of(const Plan::Term& term) const;

  Device& device_;
  Config config_;
  const Base& base_;
  Plan plan_;
  std::vector<Level> levels_;
  DType compute_;
  std::vector<int> key_slots_;  // in the order of their forwards
  Encoder f_q_;
  std::optional<Encoder> f_k_;
  std::vector<Queue> queues_;  // per level, where the base has a queue
  Comm& comm_;
  BatchLayout layout_;
  GradientBuckets buckets_;
  std::vector<ViewInput> inputs_;
  std::vector<Tensor> given_;
  std::vector<Tensor> shuffle_, unshuffle_;  // i32 per key: of this process's images, or of all where they come so
  std::vector<Tensor> corners_;              // i32 [B,2] per level
  Tensor own_, ids_;                         // i32 [B], [M] of an in-batch bank
  std::unique_ptr<Optimizer> optimizer_;
  LossScale loss_scale_;
  Tensor box_, weights_;  // f32 [Plan::kWeights]: 1, w0, w1, lambda, 1 - lambda of the step
  Tensor learning_rate_, momentum_, statistics_momentum_, finite_;
  StepDraw draw_;

  // Of the step that runs
  int part_ = 0;  // of layout_.parts
  std::map<int, Tensor> images_;
  std::map<int, Anchor> anchors_;
  std::map<int, Key> keys_;
  std::map<std::pair<int, int>, Var> banks_;  // by stage and direction
  std::vector<Tensor> enqueue_;               // per level: this process's keys to push at commit
  std::vector<Statistics> query_statistics_, key_statistics_;

  // Sums since the last begin_measure(), one per (level, term) in the order of term_names_, and of the whole loss
  std::vector<std::pair<std::string, std::string>> term_names_;  // level, term
  Tensor counts_, zero_;  // f32 [1]: 1 where the step's losses belong into the sums, else 0; always 0
  Tensor loss_sum_, total_sum_, positive_sum_, negative_sum_;
  Tensor last_query_;   // this process's embeddings of the first anchor, in the last part
  Tensor all_queries_;  // room for those of all processes; empty where there is one
  float lr_now_ = 0, momentum_now_ = 0;
  Measured measured_;
};

}  // namespace csml
