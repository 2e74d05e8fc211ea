// A pretraining binary of one's own: an own network and an own recipe of views in csml's training loop, which brings
// checkpoints, resuming, the log, the online k-NN and, under mpirun, several processes.
//
//   pretrain TRAIN TEST OUT [EPOCHS]     e.g. pretrain 'cifar10:DIR' 'cifar10:DIR?split=test' runs/mine 100
//
// TRAIN and TEST: data sets as csml names them (data/dataset.h), of 32 x 32 pixels. The same command goes on after an
// interruption. OUT then holds what a run of csml holds: csml report, csml inspect and csml replay --png read it.
#include <csignal>
#include <cstdio>

#include "csml/method/resolve.h"
#include "csml/training/train_loop.h"
#include "data/dataset.h"
#include "engine/log.h"
#include "models/trunk.h"

using namespace csml;

/// The network: four 3x3 convolutions, each with batch norm and ReLU, the middle ones halving the map; then a global
/// average. Layers register their parameters with `params` under the names given.
class SmallNet : public Trunk {
 public:
  SmallNet(Params& params, int channels) {
    const int widths[] = {32, 64, 128, 256};
    for (int i = 0, in = channels; i < 4; in = widths[i++]) {
      convs_.emplace_back(params, cat("conv{}", i), in, widths[i], /*kernel=*/3, /*stride=*/i == 0 ? 1 : 2, /*pad=*/1);
      norms_.emplace_back(params, cat("bn{}", i), widths[i]);
    }
  }
  /// x [N,32,32,C] -> pooled [N,256]
  Stages operator()(const Var& x, const Forward& forward, std::vector<Var>*) const override {
    Var y = x;
    for (size_t i = 0; i < convs_.size(); ++i) y = norms_[i](convs_[i](y), forward, /*relu=*/true);
    Stages out;
    out.pooled = global_avg_pool(y);
    return out;
  }
  int64_t feature_dim() const override { return 256; }

 private:
  std::vector<Conv2d> convs_;
  std::vector<BatchNorm> norms_;
};

/// Everything that csml pretrain takes as keys (docs/keys.md) is a member; what is not set here has its default.
Config configuration(const std::string& train, const std::string& test, int epochs) {
  Config c;
  c.data.train = train;
  c.data.test = test;
  c.model.trunk = "smallnet";  // the name under which main() registers it
  c.model.dim = 64;
  // The views: wide crops, strong colour, never gray, no blur, now and then solarised.
  c.augment = {.crop_size = 32, .scale_min = 0.3f, .hue = 0.2f, .gray_p = 0, .blur_p = 0, .solarize_p = 0.1f};
  c.augment.channels = open_dataset(train)->channels();
  c.method.name = "simclr";  // or moco, byol, mocov3, csml
  c.method.bn_group_size = 0;
  c.optimizer = {.kind = "adamw", .weight_decay = 0.05f};
  c.lr_per_256 = 2e-3;
  c.schedule.warmup_epochs = epochs > 5 ? 1 : 0;
  c.train.epochs = epochs;
  c.train.batch_size = 128;
  c.train.log_every_steps = 5;
  c.eval.knn_every_epochs = 1;
  c.eval.resize = 0;  // test images as they are
  c.eval.size = 32;
  resolve(c);  // checks the whole and fills in what follows from it
  return c;
}

std::atomic<bool> stop_asked{false};

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: pretrain TRAIN TEST OUT [EPOCHS]\n"), 2;
  try {
    register_trunk("smallnet",
                   [](Params& params, int channels) { return std::make_unique<SmallNet>(params, channels); });
    const Config config = configuration(argv[1], argv[2], argc > 4 ? std::stoi(argv[4]) : 100);
    // Alone, or one of the processes that mpirun or srun started; only rank 0 writes.
    const Launch job = launch();
    log_configure(job.rank, job.size, /*quiet=*/false);
    const auto device = Device::open("auto");
    const auto comm = Comm::open(*device, {});
    for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { stop_asked = true; });

    RunOptions options;
    options.out = argv[3];
    options.stop = &stop_asked;  // the step is ended, a checkpoint written
    std::filesystem::create_directories(options.out);
    const RunResult result = pretrain(*device, *comm, config, options);
    if (job.rank == 0)
      std::printf("%s after %lld steps: loss %.3f, k-NN %.1f %%, %s\n", result.stopped ? "stopped" : "done",
                  static_cast<long long>(result.steps), result.loss.value_or(0), result.knn_top1,
                  result.checkpoint.c_str());
    return result.stopped ? 75 : 0;
  } catch (const std::exception& e) { return std::fprintf(stderr, "pretrain: %s\n", e.what()), 1; }
}
