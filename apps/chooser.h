// Chooses a recipe for images that nobody wrote one for (csml pretrain --preset auto), from facts of the data and of the
// machine.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace csml {

/// What the choice depends on. apps/facts.h finds it out; a test makes it up.
struct Facts {
  int64_t images = 0;
  int short_side = 0;          // pixels; median of the images that were looked at
  bool gray = false;           // no colour in any of these
  double decode_seconds = 0;   // of one image, by one thread
  double cores = 1;            // that this process may use
  uint64_t memory = 0;         // bytes that a run may take: of the host, or of the card
  bool card = false;           // whether it computes on one
  double flop_per_second = 0;  // of a training step, measured; must be above 0
  double hours = 1;            // wanted
  std::string method{};        // asked for; empty: to be chosen
};

/// A line for people: what was chosen, why, and the flag that says otherwise.
struct Reason {
  std::string what, choice, why, change;
};

struct Chosen {
  std::vector<std::pair<std::string, std::string>> values;  // configuration key and value, as --set takes them
  std::vector<Reason> reasons;
  double hours = 0;     // expected, evaluations and neighbour searches included
  std::string warning;  // empty: none. Such as a time too short for these images
};

/// FLOP of one image of a training step: 2 x multiply-adds of a forward pass x passes. Passes: MoCo one query (forward and
/// twice that backward) and one key: 4; CsMl three anchors and two keys: 11. Multiply-adds of ResNet-18 and -50 at 224
/// pixels and width 64: 1.82e9 and 4.1e9; times (width / 64)^2 and (view / 224)^2; times 15 with the CIFAR stem.
double step_flop(const std::string& method, int depth, const std::string& stem, int width, int view);

/// Bytes that one image of a training step keeps for backward in f32, roughly: ResNet-18 at 224 pixels and width 64 keeps
/// 90 MB, ResNet-50 four times that.
double step_bytes(const std::string& method, int depth, const std::string& stem, int width, int view);

/// The largest network and view whose passes over the images are enough within `facts.hours`. Pure: the same facts give
/// the same choice. Throws UsageError for fewer than 16 images, which no batch can be made of.
Chosen choose(const Facts& facts);

/// For a terminal: a head, one line for each reason, and the warning.
std::string chosen_text(const Chosen& chosen);

}  // namespace csml
