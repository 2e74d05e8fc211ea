// Base: what one base method is. A plain run trains the base alone; CsMl adds its views and terms to any of them.
// Adding one: a file that fills a Base, one line in base.cpp's table, a golden row or a limit test.
#pragma once

#include <string>
#include <vector>

#include "csml/config/config.h"
#include "engine/ops.h"

namespace csml {

/// One anchor view against its positives; everything a loss may use. Rows are unit vectors of this process's batch.
struct LossInput {
  const Config& config;
  Var anchor;                  // [B,D]
  std::vector<Var> positives;  // P of [B,D]; constants where they come from a momentum encoder
  Tensor weights;              // [P]
  Var bank;                    // negatives [M,D]: the queue's rows, or the batch's keys of all processes; may be empty
  Tensor own, ids;             // i32 [B], [M]: a bank row whose id is the anchor's own is no negative; empty: all are
  Similarity* similarity = nullptr;
};

struct Base {
  std::string name{};
  std::string help{};
  bool momentum_encoder = true;  // keys come from a momentum encoder; else from the trained one, with gradient
  bool predictor = false;        // anchors pass a predictor behind the head
  enum class Negatives { queue, keys, anchors_and_keys, none };
  Negatives negatives = Negatives::none;  // queue: needs the queue below
  bool queue = false;  // keeps a queue of earlier keys, one per level, in which every step's keys replace the oldest
  bool in_batch() const { return negatives == Negatives::keys || negatives == Negatives::anchors_and_keys; }
  int directions = 1;                         // 2: each view of a pair is anchor once (symmetrised)
  std::string head_bn = "none";               // of the published recipe: none | hidden | all
  Var (*loss)(const LossInput&) = nullptr;    // scalar, of one term
  double (*factor)(const Config&) = nullptr;  // multiplies the sum over directions
  double (*chance)(const Config&) = nullptr;  // loss() of an encoder that tells nothing apart
};

Base moco_base();    // moco.cpp
Base simclr_base();  // simclr.cpp
Base byol_base();    // byol.cpp
Base mocov3_base();  // mocov3.cpp

/// The table of all bases.
const std::vector<Base>& bases();
/// By name. Throws UsageError.
const Base& find_base(const std::string& name);
/// What the configured method trains or, for csml, builds on.
const Base& base_of(const MethodConfig& config);

/// Whether the loss against a queue is the streaming kernel's (info_nce), which never holds the [B,K] logits: the
/// authors' form, every row of the queue a negative. It takes the queue in the type that the network computes in.
bool streams_queue(const MethodConfig& config);
/// The multi-positive contrastive loss against in.bank in the form of method.form, with method.queue_filter: shared by
/// the bases that have negatives.
Var contrastive_loss(const LossInput& in);

}  // namespace csml
