// Siamese's forward half: embeddings of anchors and keys at every level, and the loss made of them.
#include "csml/method/siamese.h"

namespace csml {

// ---- embeddings -----------------------------------------------------------------------------------------------------

Tensor Siamese::images(int slot) {
  const auto found = images_.find(slot);
  if (found != images_.end()) return found->second;
  const Plan::Slot& s = plan_.slots[static_cast<size_t>(slot)];
  const auto view = static_cast<size_t>(s.view);
  const Tensor made = s.view < 0       ? cut_mix(images(s.base), images(s.paste), box_)
                      : given_.empty() ? inputs_[view].images(part_ * layout_.part, layout_.part)
                                       : given_[view].rows(part_ * layout_.part, layout_.part);
  return images_[slot] = made;
}

Tensor Siamese::key_images(int slot, int number, int part) {
  if (layout_.parts == 1) {  // an anchor may need the same images
    const Tensor x = images(slot);
    return layout_.loader_shuffles ? x : gather(x, shuffle_[static_cast<size_t>(number)]);
  }
  const int view = plan_.slots[static_cast<size_t>(slot)].view;
  CHECK(view >= 0, "keys of images that are put together, in several parts");
  const ViewInput& input = inputs_[static_cast<size_t>(view)];
  const int64_t first = part * layout_.part;
  if (layout_.loader_shuffles) return input.images(first, layout_.part);
  const Tensor order = shuffle_[static_cast<size_t>(number)].rows(first, layout_.part);
  return given_.empty() ? input.images(order) : gather(given_[static_cast<size_t>(view)], order);
}

Forward Siamese::forward_of(Encoder& encoder, Encoder::Range range, int64_t n, std::vector<Statistics>& list,
                            bool keep) {
  const int ranks = layout_.group_ranks;
  Forward forward{.training = true,
                  .groups = ranks > 1 ? 1 : static_cast<int>(n / layout_.group),
                  .span = {.comm = &comm_, .first = comm_.rank() / ranks * ranks, .count = ranks},
                  .statistics = {}};
  if (!keep || range.count == 0) return forward;
  forward.statistics = Tensor::full(device_, encoder.params().buffers().shape(), 0.f);  // the gaps stay zero
  list.push_back({forward.statistics.span(range.first, {range.count}), range});
  return forward;
}

Siamese::Anchor& Siamese::anchor(int slot) {
  Anchor& a = anchors_[slot];
  if (a.stages.pooled) return a;
  const bool keep = !plan_.slots[static_cast<size_t>(slot)].crop || config_.method.crop_statistics;
  const Tensor x = images(slot);
  a.stages = f_q_.trunk(Var(x), forward_of(f_q_, f_q_.trunk_statistics(), x.shape()[0], query_statistics_, keep));
  return a;
}

Var Siamese::project_query(const Level& level, const Var& x, bool keep) {
  const int64_t n = x.shape()[0];
  Var z = f_q_.head(level.stage, x, forward_of(f_q_, f_q_.head_statistics(level.stage), n, query_statistics_, keep));
  if (base_.predictor)
    z = f_q_.predict(level.stage, z,
                     forward_of(f_q_, f_q_.predictor_statistics(level.stage), n, query_statistics_, keep));
  return l2_normalize(z);
}

Var Siamese::anchor_embedding(const Level& level, int slot) {
  Anchor& a = anchor(slot);
  Var& embedding = a.embedding[level.stage];
  const bool keep = !plan_.slots[static_cast<size_t>(slot)].crop || config_.method.crop_statistics;
  if (!embedding)
    embedding = project_query(
        level, level.stage == Encoder::kTop ? a.stages.pooled : a.stages.stage[static_cast<size_t>(level.stage)], keep);
  return embedding;
}

Var Siamese::anchor_patch(const Level& level, int slot, const Tensor& window) {
  const Var& map = anchor(slot).stages.stage[static_cast<size_t>(level.stage)];
  const Tensor corner = best_window(map.value(), window, level.stride);
  return project_query(level, gather_window(map, corner, level.window, level.window), true);
}

Siamese::Key Siamese::make_key(int slot, int number) {
  const NoGrad no_grad;
  const int64_t n = layout_.part;
  std::vector<Statistics> statistics;
  std::map<int, std::vector<Var>> embeddings, windows;  // by stage, the parts one after the other
  for (int part = 0; part < layout_.parts; ++part) {
    const Stages stages = f_k_->trunk(Var(key_images(slot, number, part)),
                                      forward_of(*f_k_, f_k_->trunk_statistics(), n, statistics, true));
    for (size_t l = 0; l < levels_.size(); ++l) {
      const Level& level = levels_[l];
      Var in = level.stage == Encoder::kTop ? stages.pooled : stages.stage[static_cast<size_t>(level.stage)];
      if (level.window > 0) {  // one window for the whole step, so the permutation does not matter to it
        in = gather_window(in, corners_[l].rows(0, n), level.window, level.window);
        windows[level.stage].push_back(in);
      }
      embeddings[level.stage].push_back(l2_normalize(
          f_k_->head(level.stage, in, forward_of(*f_k_, f_k_->head_statistics(level.stage), n, statistics, true))));
    }
  }
  average_parts(statistics);
  for (Statistics& s : statistics) key_statistics_.push_back(std::move(s));
  Key key;
  for (const auto& [stage, parts] : windows) key.window[stage] = unshuffled(concat_rows(parts).value(), number);
  for (const auto& [stage, parts] : embeddings)
    key.embedding[stage] = Var(unshuffled(concat_rows(parts).value(), number));
  return key;
}

Var Siamese::key_embedding(const Level& level, int slot) {
  if (!f_k_) {
    const Var& embedding = anchor_embedding(level, slot);
    return config_.method.key_gradient ? embedding : embedding.detach();
  }
  const Var& whole = keys_.at(slot).embedding.at(level.stage);
  return layout_.parts == 1 ? whole : Var(whole.value().rows(part_ * layout_.part, layout_.part));
}

Tensor Siamese::key_window(const Level& level, int slot) {
  return keys_.at(slot).window.at(level.stage).rows(part_ * layout_.part, layout_.part);
}

Tensor Siamese::unshuffled(const Tensor& rows, int number) {
  const Tensor& unshuffle = unshuffle_[static_cast<size_t>(number)];
  if (!layout_.loader_shuffles) return gather(rows, unshuffle);
  const Tensor all(device_, rows.shape().with_rows(layout_.global));
  comm_.all_gather(rows, all);
  return gather(all, unshuffle).rows(layout_.first, layout_.local);
}

Var Siamese::gather_keys(const Var& rows) {
  if (comm_.size() == 1) return rows;
  const int64_t mine = rows.shape()[0];
  const Tensor all(device_, rows.shape().with_rows(mine * comm_.size()));
  comm_.all_gather(rows.value(), all);
  // The processes' gradients are averaged afterwards, so a row takes the sum of what all losses say of it.
  return Var::op("gather_keys", all, {rows}, [&comm = comm_, mine](const Tensor& dy, std::span<const Sink> dx) {
    if (!dx[0]) return;
    comm.join();  // a reduction whose result is needed at once
    comm.all_reduce_sum(dy);
    comm.fork();
    backend(dy).axpy({.x = dy.rows(comm.rank() * mine, mine), .y = dx[0].tensor, .write = dx[0].write});
  });
}

// ---- the loss -------------------------------------------------------------------------------------------------------

Tensor Siamese::weights_of(const Plan::Term& term) const {
  return weights_.span(static_cast<int64_t>(term.weight), {static_cast<int64_t>(term.keys.size())});
}

std::vector<int> Siamese::bank_slots(int direction) const {
  const bool partners = config_.method.partner_negatives;
  const Plan::Names n = plan_.named(base_.negatives == Base::Negatives::anchors_and_keys ? 0 : direction);
  if (base_.negatives == Base::Negatives::anchors_and_keys)
    return partners ? std::vector{n.q, n.k, n.p, n.kp} : std::vector{n.q, n.k};
  return partners ? std::vector{n.k, n.kp} : std::vector{n.k};
}

Var Siamese::bank(const Level& level, size_t level_index, int direction) {
  if (base_.negatives == Base::Negatives::none) return {};
  if (base_.negatives == Base::Negatives::queue && !(compute_ != DType::f32 && streams_queue(config_.method)))
    return Var(queues_[level_index].rows());
  const bool both = base_.negatives == Base::Negatives::anchors_and_keys;
  Var& made = banks_[{level.stage, both ? 0 : direction}];
  if (made) return made;
  if (base_.negatives == Base::Negatives::queue) {
    made = cast(Var(queues_[level_index].rows()), compute_);
  } else {
    std::vector<Var> rows;
    for (const int slot : bank_slots(direction)) rows.push_back(gather_keys(key_embedding(level, slot)));
    made = rows.size() == 1 ? rows[0] : concat_rows(rows);
  }
  return made;
}

bool Siamese::by_patches(const Level& level, const Plan::Term& term, int key) const {
  if (level.window == 0 || term.crop) return false;
  const Plan::Slot& a = plan_.slots[static_cast<size_t>(term.anchor)];
  // patch-lite searches only where anchor and key show one image; elsewhere the anchor's whole map is embedded.
  return config_.method.alignment == "patch" || a.image == plan_.slots[static_cast<size_t>(key)].image;
}

Var Siamese::term_loss(const Level& level, size_t level_index, const Plan::Term& term, Similarity* similarity) {
  const bool in_batch = base_.in_batch();
  LossInput in{.config = config_,
               .anchor = {},
               .positives = {},
               .weights = weights_of(term),
               .bank = bank(level, level_index, term.direction),
               .own = in_batch ? own_ : Tensor(),
               .ids = in_batch ? ids_ : Tensor(),
               .similarity = similarity};
  bool patches = false;
  for (const int key : term.keys) {
    in.positives.push_back(key_embedding(level, key));
    patches |= by_patches(level, term, key);
  }
  if (!patches) {
    in.anchor = anchor_embedding(level, term.anchor);
    if (similarity) last_query_ = in.anchor.value();
    return base_.loss(in);
  }
  // Each pair has an anchor of its own: the patch that agrees with that key.
  Var sum;
  const Tensor weights = in.weights;
  const std::vector<Var> positives = in.positives;
  for (size_t j = 0; j < positives.size(); ++j) {
    in.anchor = by_patches(level, term, term.keys[j])
                    ? anchor_patch(level, term.anchor, key_window(level, term.keys[j]))
                    : anchor_embedding(level, term.anchor);
    in.positives = {positives[j]};
    in.weights = weights.span(static_cast<int64_t>(j), {1});
    in.similarity = j == 0 ? similarity : nullptr;
    if (in.similarity) last_query_ = in.anchor.value();
    const Var loss = base_.loss(in);
    sum = sum ? add(sum, loss) : loss;
  }
  return sum;
}

Var Siamese::total_loss() {
  int full_terms = 0, crops = 0;  // of one direction
  for (const Plan::Term& term : plan_.terms)
    if (term.direction == 0) ++(term.crop ? crops : full_terms);
  const auto factor = static_cast<float>(base_.factor(config_));
  const float share = 1.f / static_cast<float>(layout_.parts);
  const std::vector<double>& shares = config_.method.crop_weights;
  const auto scaled = [](const Var& x, float by) { return by == 1 ? x : scale(x, by); };
  Var total;
  int64_t entry = 0;
  for (size_t l = 0; l < levels_.size(); ++l) {
    const Level& level = levels_[l];
    Var full, small;
    for (const Plan::Term& term : plan_.terms) {
      if (term.crop && l > 0) continue;
      Similarity similarity;
      const Var loss = term_loss(level, l, term, entry == 0 ? &similarity : nullptr);
      accumulate(loss.value(), loss_sum_.span(entry, {1}), share, counts_);
      if (entry == 0) {
        accumulate(similarity.positive.span(0, {1}), positive_sum_, share, counts_);
        accumulate(similarity.negative, negative_sum_, share, counts_);
      }
      ++entry;
      Var& sum = term.crop ? small : full;
      sum = sum ? add(sum, loss) : loss;
    }
    full = scaled(full, factor / static_cast<float>(full_terms) * level.weight);
    if (crops > 0) full = scaled(full, static_cast<float>(shares[0]));
    if (small) full = add(full, scaled(small, factor * level.weight * static_cast<float>(shares[1])));
    total = total ? add(total, full) : full;
  }
  return total;
}

}  // namespace csml
