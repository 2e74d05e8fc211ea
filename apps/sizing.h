// Sizing: what a pretraining run on many cards is expected to need, by formulas; docs/cluster.md prints the table and
// gives each figure's source.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace csml {

/// Of one card, one machine and the network between machines. Defaults are figures of others or assumptions
/// (docs/cluster.md); a run's own measurements take their place.
struct SizingInput {
  double pairs_per_second = 5600;   // of one card: MoCo v2, ResNet-50, 224 px, 256 pairs a step
  double small_batch_share = 0.69;  // of that rate at 32 pairs a step
  double pairs_per_core = 562;      // loader: two crops of one decoded image, per core and second
  double image_bytes = 110e3;       // mean of a stored image
  double gradient_bytes = 112e6;    // 28.0 M parameters in f32
  double bucket_bytes = 8 << 20;    // engine/buckets.h
  double backward_share = 0.5;      // of the step: 2 of 4 forward equivalents (query 1 + 2, key 1)
  int cards_per_machine = 8;
  double machine_bytes = 370e9;  // bus bandwidth of an all-reduce between the cards of a machine, bytes/s
  double network_bytes = 320e9;  // the same between machines, all their adapters together
  double call_seconds = 20e-6;   // least time of a collective inside a machine
  double hop_seconds = 10e-6;    // more for each doubling of the number of machines
};

/// One line of the table. Seconds, bytes/s.
struct SizingRow {
  int cards = 1, batch = 256;  // batch: pairs per card
  double step = 0;             // without communication
  double communication = 0;    // all of it
  double exposed = 0;          // the part that no computation hides
  double efficiency = 1;       // step / (step + exposed)
  double pairs_per_second = 0;
  double cores_per_machine = 0;    // of the loader
  double storage_per_machine = 0;  // bytes/s, read
  double hours = 0;                // 200 epochs of ImageNet (1,281,167 images)
};

/// n = cards, m = machines, g = cards of one machine, b = gradient bytes, k = bucket bytes:
///   all-reduce(x) = call + hop log2(m) + 2 (g-1)/g x / machine + 2 (m-1)/m x / network
///   communication = ceil(b/k) all-reduces of a bucket + exposed calls of commit
///   exposed       = the last bucket + max(0, the other buckets - backward) + gather of keys + statistics, flag, vote
SizingRow sizing(const SizingInput& input, int cards, int batch);
/// 1, 8, 64 and 512 cards with 256 and with 32 pairs each.
std::vector<SizingRow> sizing_table(const SizingInput& input);

std::string sizing_text(const std::vector<SizingRow>& rows);  // Markdown
nlohmann::json sizing_json(const std::vector<SizingRow>& rows);

}  // namespace csml
