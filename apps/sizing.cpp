#include "apps/sizing.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace csml {
namespace {

constexpr double kImages = 1281167, kEpochs = 200;
constexpr double kKeyBytes = 128 * sizeof(float);           // one embedding
constexpr double kStatisticsBytes = 53120 * sizeof(float);  // running statistics of ResNet-50 (means and variances)

class Network {
 public:
  Network(const SizingInput& in, int cards)
      : in_(in),
        cards_(cards),
        inside_(std::min(cards, in.cards_per_machine)),
        machines_((cards + in.cards_per_machine - 1) / in.cards_per_machine) {}

  double all_reduce(double bytes) const {
    if (cards_ == 1) return 0;
    return latency() + 2 * share(inside_) * bytes / in_.machine_bytes +
           2 * share(machines_) * bytes / in_.network_bytes;
  }
  /// bytes: of one card.
  double all_gather(double bytes) const {
    if (cards_ == 1) return 0;
    const double all = bytes * cards_;
    return latency() + share(inside_) * all / in_.machine_bytes + share(machines_) * all / in_.network_bytes;
  }

 private:
  static double share(int n) { return static_cast<double>(n - 1) / n; }
  double latency() const { return in_.call_seconds + in_.hop_seconds * std::log2(machines_); }

  const SizingInput& in_;
  int cards_, inside_, machines_;
};

}  // namespace

SizingRow sizing(const SizingInput& in, int cards, int batch) {
  SizingRow row{.cards = cards, .batch = batch};
  const double rate = in.pairs_per_second * (batch >= 256 ? 1 : in.small_batch_share);
  row.step = batch / rate;
  const Network network(in, cards);
  const double buckets = std::ceil(in.gradient_bytes / in.bucket_bytes);
  const double bucket = network.all_reduce(in.gradient_bytes / buckets);
  // Keys gathered; statistics of query and key forward averaged; finite flag; vote on stopping.
  const double commit =
      network.all_gather(batch * kKeyBytes) + 2 * network.all_reduce(kStatisticsBytes) + 2 * network.all_reduce(4);
  row.communication = buckets * bucket + commit;
  row.exposed = bucket + std::max(0.0, (buckets - 1) * bucket - in.backward_share * row.step) + commit;
  const double whole = row.step + row.exposed;
  row.efficiency = row.step / whole;
  row.pairs_per_second = cards * batch / whole;
  const double here = row.pairs_per_second / cards * std::min(cards, in.cards_per_machine);
  row.cores_per_machine = here / in.pairs_per_core;
  row.storage_per_machine = here * in.image_bytes;
  row.hours = kEpochs * kImages / row.pairs_per_second / 3600;
  return row;
}

std::vector<SizingRow> sizing_table(const SizingInput& input) {
  std::vector<SizingRow> rows;
  for (const int batch : {256, 32})
    for (const int cards : {1, 8, 64, 512}) rows.push_back(sizing(input, cards, batch));
  return rows;
}

std::string sizing_text(const std::vector<SizingRow>& rows) {
  std::string text =
      "| cards | pairs per card | step, ms | communication, ms | exposed, ms | efficiency | pairs/s | loader cores per "
      "machine | read per machine, GB/s | 200 epochs of ImageNet, h |\n"
      "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (const SizingRow& r : rows)
    text += cat("| {} | {} | {:.1f} | {:.2f} | {:.2f} | {:.1f} % | {:.0f} | {:.0f} | {:.2f} | {:.2f} |\n", r.cards,
                r.batch, 1e3 * r.step, 1e3 * r.communication, 1e3 * r.exposed, 100 * r.efficiency, r.pairs_per_second,
                std::ceil(r.cores_per_machine), 1e-9 * r.storage_per_machine, r.hours);
  return text;
}

nlohmann::json sizing_json(const std::vector<SizingRow>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const SizingRow& r : rows)
    list.push_back({{"cards", r.cards},
                    {"pairs_per_card", r.batch},
                    {"step_seconds", r.step},
                    {"communication_seconds", r.communication},
                    {"exposed_seconds", r.exposed},
                    {"efficiency", r.efficiency},
                    {"pairs_per_second", r.pairs_per_second},
                    {"cores_per_machine", r.cores_per_machine},
                    {"storage_bytes_per_second_and_machine", r.storage_per_machine},
                    {"hours_200_epochs_of_imagenet", r.hours}});
  return list;
}

}  // namespace csml
