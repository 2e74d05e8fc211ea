// Evaluation: label splits, streamed k-NN, SVM, fine-tuning, formats of other programs.
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "csml/evaluation/finetune.h"
#include "csml/evaluation/label_split.h"
#include "csml/evaluation/probe_knn.h"
#include "csml/evaluation/probe_linear_augmented.h"
#include "csml/evaluation/svm.h"
#include "data/subset.h"
#include "models/onnx.h"
#include "models/pickle.h"
#include "models/weights.h"

#include "tests/backend.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

ModelConfig tiny_model() {
  return {.depth = 18, .stem = "cifar", .width = 8, .head_hidden = 0, .head_mlp = true, .dim = 16};
}

AugmentConfig plain_augment(int size) {
  AugmentConfig a;
  a.crop_size = size;
  a.scale_min = 0.5f;
  a.jitter_p = a.gray_p = a.blur_p = 0;
  return a;
}

FinetuneOptions tiny_recipe(int epochs) {
  FinetuneOptions o;
  o.epochs = epochs;
  o.batch_size = 32;
  o.trunk_rate = o.head_rate = 0.1;
  o.augment = plain_augment(16);
  o.eval.transform = {.resize = 0, .size = 16, .filter = Filter::bilinear};
  o.eval.workers = 0;
  return o;
}

Features random_features(Device& device, int64_t rows, int64_t dim, int classes, uint64_t stream) {
  Random random(1, Purpose::test, stream);
  std::vector<float> values;
  Features out;
  for (int64_t i = 0; i < rows; ++i) {
    const int label = static_cast<int>(i % classes);
    out.labels.push_back(label);
    for (int64_t d = 0; d < dim; ++d) values.push_back(random.normal() + (d == label ? 2.f : 0.f));
  }
  out.values = l2_normalize(Var(Tensor::from(device, {rows, dim}, values))).value();
  return out;
}

std::vector<float> copy_of(const Tensor& t) { return t.host<float>(); }

/// A trunk trained on 640 labelled shapes: what stands for a pretrained encoder. Trained once.
const std::vector<NamedArray>& trained_trunk() {
  static const std::vector<NamedArray> arrays = [] {
    const auto device = open_backend();
    const auto train = open_dataset("synthetic:shapes?size=16&limit=640");
    FinetuneOptions o = tiny_recipe(30);
    o.trunk_rate = o.head_rate = 0.05;
    const FinetuneResult trained = finetune(*device, tiny_model(), nullptr, *train, nullptr, o);
    return to_host(trained.classifier->trunk(), "");
  }();
  return arrays;
}

/// An encoder with that trunk.
std::unique_ptr<Encoder> trained_encoder(Device& device) {
  auto encoder = std::make_unique<Encoder>(device, tiny_model(), 3, 1, false);
  std::vector<NamedArray> arrays = trained_trunk();
  for (const NamedArray& a : to_host(encoder->params(), ""))
    if (a.name.starts_with("fc.")) arrays.push_back(a);
  from_host(encoder->params(), arrays, "");
  return encoder;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(double{a[i]} - double{b[i]}));
    scale = std::max(scale, std::abs(double{b[i]}));
  }
  return worst / scale;
}

}  // namespace

TEST_CASE("labels are drawn balanced, by seed, and a smaller share is a subset of a larger one") {
  std::vector<int> labels;  // 5 classes of 300, 260, … images, and one of 3
  for (int c = 0; c < 5; ++c) labels.insert(labels.end(), static_cast<size_t>(300 - 40 * c), c);
  labels.insert(labels.end(), 3, 5);
  const auto draw = [&](double share, uint64_t seed) { return balanced_labels(labels, 6, share, seed); };
  const std::vector<int64_t> tenth = draw(0.1, 0);
  CHECK(static_cast<int64_t>(tenth.size()) == static_cast<int64_t>(0.1 * static_cast<double>(labels.size())));
  std::map<int, int> count;
  for (int64_t i : tenth) ++count[labels[static_cast<size_t>(i)]];
  CHECK(count[5] == 3);  // all it has
  int least = 1 << 20, most = 0;
  for (int c = 0; c < 5; ++c) least = std::min(least, count[c]), most = std::max(most, count[c]);
  CHECK(most - least <= 1);
  CHECK(tenth == draw(0.1, 0));
  CHECK(tenth != draw(0.1, 1));
  const std::vector<int64_t> few = draw(0.02, 0);
  CHECK(std::includes(tenth.begin(), tenth.end(), few.begin(), few.end()));
  CHECK(draw(0.0001, 0).size() == 6);  // at least one of each
  CHECK(draw(1, 0).size() == labels.size());
  // ImageNet's numbers: floor(1 % of 1,281,167) = 12,811 over 1,000 classes: 12 or 13 each.
  std::vector<int> many(1281167);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int>(i % 1000);
  const std::vector<int64_t> percent = balanced_labels(many, 1000, 0.01, 0);
  CHECK(percent.size() == 12811);
  std::vector<int> per_class(1000);
  for (int64_t i : percent) ++per_class[static_cast<size_t>(many[static_cast<size_t>(i)])];
  CHECK(*std::min_element(per_class.begin(), per_class.end()) == 12);
  CHECK(*std::max_element(per_class.begin(), per_class.end()) == 13);
}

TEST_CASE("hold-outs and low-shot draws are balanced and leave something of every class") {
  std::vector<int> labels;
  for (int i = 0; i < 60; ++i) labels.push_back(i % 3);
  const HoldOut split = hold_out(labels, 3, 0.25, 4);
  CHECK(split.held.size() == 15);
  CHECK(split.rest.size() == 45);
  const HoldOut small = hold_out({0, 0, 1, 1}, 2, 0.1, 0);  // rounds to none, yet one of each
  CHECK(small.held.size() == 2);
  CHECK(small.rest.size() == 2);
  const std::vector<int32_t> first = low_shot(labels, 3, 4, 0, 0);
  CHECK(first.size() == 12);
  CHECK(first == low_shot(labels, 3, 4, 0, 0));
  CHECK(first != low_shot(labels, 3, 4, 0, 1));
  std::map<int, int> count;
  for (int32_t i : first) ++count[labels[static_cast<size_t>(i)]];
  CHECK(count[0] == 4);
  CHECK(count[2] == 4);
  CHECK(contains(error_of([&] { low_shot(labels, 3, 21, 0, 0); }), "class 0 has 20"));
}

TEST_CASE("a list file names the labelled images") {
  const Folder folder;
  std::filesystem::create_directories(folder.path / "a");
  std::filesystem::create_directories(folder.path / "b");
  const std::string image = "P5 1 1 255\n\x7f";
  for (const char* name : {"a/x.pgm", "a/same.pgm", "b/y.pgm", "b/same.pgm"}) spill(folder.path / name, image);
  const auto set = open_dataset("folder:" + folder.path.string());  // a/same, a/x, b/same, b/y
  REQUIRE(set->size() == 4);
  const std::filesystem::path list = folder.path / "list.txt";
  int64_t unmatched = 0;
  spill(list, "x.pgm\nabsent.JPEG\r\nb/same.pgm\nx.pgm\n");
  CHECK(listed_labels(*set, list, &unmatched) == std::vector<int64_t>{1, 2});
  CHECK(unmatched == 1);
  spill(list, "3\n0\n");
  CHECK(listed_labels(*set, list, &unmatched) == std::vector<int64_t>{0, 3});
  spill(list, "4\n");
  CHECK(contains(error_of([&] { listed_labels(*set, list, &unmatched); }), "list.txt:1: image 4 of 4"));
  spill(list, "same.pgm\n");
  CHECK(contains(error_of([&] { listed_labels(*set, list, &unmatched); }), "fits several images"));
  spill(list, "nothing.png\n");
  CHECK(contains(error_of([&] { listed_labels(*set, list, &unmatched); }), "names no image"));
  CHECK(contains(error_of([&] { listed_labels(*set, folder.path / "no.txt", &unmatched); }), "cannot read"));
}

TEST_CASE("a subset has its own order and labels") {
  const auto set = open_dataset("synthetic:shapes?size=16&limit=20");
  const Subset part(*set, {7, 3, 7}, {1, 0, 2});
  CHECK(part.size() == 3);
  CHECK(part.label(2) == 2);
  CHECK(part.name(1) == set->name(3));
  const Image a = part.load(0), b = set->load(7);
  CHECK(std::equal(a.data(), a.data() + a.size(), b.data()));
  CHECK(part.fingerprint() != Subset(*set, {7, 3, 7}, {1, 0, 1}).fingerprint());
  CHECK(Subset(*set, {5}).label(0) == set->label(5));
  CHECK(contains(error_of([&] { const Subset wrong(*set, {20}); }), "image 20 of 20"));
  CHECK(contains(error_of([&] { const Subset wrong(*set, {1}, {99}); }), "label 99"));
}

TEST_CASE("k-NN from blocks of training rows equals k-NN from all of them") {
  const auto device = open_backend();
  const int classes = 7;
  const Features train = random_features(*device, 230, 16, classes, 1),
                 test = random_features(*device, 90, 16, classes, 2);
  const std::vector<int> ks{1, 5, 60, 230};
  const std::vector<KnnResult> whole = knn_classify(train, test, classes, ks, 0.07);
  CHECK(whole[1].top1 > 40);
  CHECK(whole[1].top1 < 100);
  for (int64_t block : {1, 33, 100, 230}) {
    KnnStream stream(test, 230);
    for (int64_t first = 0; first < 230; first += block) {
      const int64_t count = std::min<int64_t>(block, 230 - first);
      Features part;
      part.values = train.values.rows(first, count);
      part.labels.assign(train.labels.begin() + first, train.labels.begin() + first + count);
      stream.add(part);
    }
    const std::vector<KnnResult> streamed = stream.classify(classes, ks, 0.07);
    for (size_t i = 0; i < ks.size(); ++i) {
      CHECK(streamed[i].k == whole[i].k);
      CHECK(streamed[i].top1 == whole[i].top1);
      CHECK(streamed[i].top5 == whole[i].top5);
    }
  }
  // Equal similarities: the earlier row stays, also across blocks.
  Features query, a, b;
  query.values = a.values = b.values = Tensor::from(*device, {1, 2}, std::vector<float>{1, 0});
  query.labels = {1}, a.labels = {1}, b.labels = {0};
  KnnStream ties(query, 1);
  ties.add(a), ties.add(b);
  CHECK(ties.classify(2, {1}, 0.07)[0].top1 == 100);
  const KnnStream nothing(query, 1);
  CHECK(contains(error_of([&] { nothing.classify(2, {1}, 0.07); }), "needs training rows"));
}

TEST_CASE("many queries find what few find") {  // the search cuts them into larger tiles
  const auto device = open_backend();
  const Features bank = random_features(*device, 700, 24, 7, 3), queries = random_features(*device, 8300, 24, 7, 4);
  const TopKResult all = top_k(queries.values, bank.values, 9);
  for (const int64_t first : {0, 500, 8250}) {
    const TopKResult few = top_k(queries.values.rows(first, 50), bank.values, 9);
    CHECK(few.index.host<int32_t>() == all.index.rows(first, 50).host<int32_t>());
    CHECK(largest_difference(copy_of(few.scores), copy_of(all.scores.rows(first, 50))) < 1e-6);
  }
}

TEST_CASE("average precision is the area under the precision envelope") {
  // Ranks 1, 3, 4 of 5: precision 1, 2/3, 3/4, envelope 1, 3/4, 3/4.
  CHECK(average_precision({5, 4, 3, 2, 1}, {true, false, true, true, false}) == doctest::Approx((1 + 0.75 + 0.75) / 3));
  CHECK(average_precision({1, 2}, {true, false}) == doctest::Approx(0.5));
  CHECK(average_precision({1, 2}, {false, true}) == doctest::Approx(1));
  CHECK(average_precision({1, 1}, {true, false}) == doctest::Approx(1));  // equal scores: by index
  CHECK(std::isnan(average_precision({1, 2}, {false, false})));
}

TEST_CASE("the SVM equals scikit-learn's LinearSVC") {
  const auto device = open_backend();
  const Golden golden("svm");
  const auto features = [&](const std::string& name) {
    Features f;
    f.values = golden.tensor(*device, name);
    for (int32_t label : golden.values<int32_t>(name + "_labels")) f.labels.push_back(label);
    return f;
  };
  SvmOptions options;
  CHECK(options.cost == std::stod(golden.metadata().at("cost")));
  CHECK(options.positive_weight == std::stod(golden.metadata().at("positive_weight")));
  options.tolerance = 1e-10;
  const SvmResult exact = train_svm(features("train"), {}, features("test"), 3, options);
  CHECK(largest_difference(exact.weights, golden.values("weights")) < 1e-5);
  CHECK(largest_difference(exact.intercept, golden.values("intercept")) < 1e-5);
  const SvmResult usual = train_svm(features("train"), {}, features("test"), 3, {});
  for (const SvmResult* result : {&exact, &usual}) {
    for (size_t c = 0; c < 3; ++c) CHECK(result->ap[c] == doctest::Approx(golden.values("ap")[c]).epsilon(1e-6));
    CHECK(result->mean_ap == doctest::Approx(golden.scalar("map")).epsilon(1e-6));
    CHECK(result->top1 == doctest::Approx(golden.scalar("top1")).epsilon(1e-6));
  }
  // Some rows alone: another problem.
  const SvmResult few = train_svm(features("train"), {0, 1, 2, 3, 4, 5}, features("test"), 3, {});
  CHECK(largest_difference(few.weights, golden.values("weights")) > 1e-2);
  CHECK(contains(error_of([&] { train_svm(features("train"), {0, 3}, features("test"), 3, {}); }), "are of class 0"));
}

TEST_CASE("the entropy threshold is where predictions stop being right more often than wrong") {
  Predictions held;
  held.entropy = {0.1, 0.2, 0.3, 0.5, 0.9, 1.5};
  held.label = {0, 1, 1, 0, 1, 1};
  const std::vector<int> truth{0, 1, 0, 0, 0, 0};  // right, right, wrong, right, wrong, wrong
  const EntropyThreshold t = choose_threshold(held, truth);
  CHECK(t.bits == doctest::Approx(0.5));
  CHECK(t.held == 6);
  CHECK(t.kept == 4);
  CHECK(t.precision == doctest::Approx(75));
  held.entropy[4] = 0.5;  // equal entropies go together: a wrong one joins, 2 right - 1 wrong at 0.5 is not better …
  CHECK(choose_threshold(held, truth).bits == doctest::Approx(0.2));
  CHECK(choose_threshold(held, {1, 0, 0, 1, 0, 0}).bits == -1);  // … and all wrong keeps nothing
}

TEST_CASE("trunk and head are parameter groups with rates of their own") {
  const auto device = open_backend();
  const auto set = open_dataset("synthetic:shapes?size=16&limit=64");
  const Classifier start(*device, tiny_model(), 3, set->class_count(), 9);
  for (const bool trunk : {true, false}) {
    FinetuneOptions o = tiny_recipe(1);
    o.seed = 9;
    o.trunk_rate = trunk ? 0.1 : 0;
    o.head_rate = trunk ? 0 : 0.1;
    const FinetuneResult r = finetune(*device, tiny_model(), nullptr, *set, nullptr, o);
    CHECK((copy_of(r.classifier->trunk().master()) == copy_of(start.trunk().master())) == !trunk);
    CHECK((copy_of(r.classifier->head().master()) == copy_of(start.head().master())) == trunk);
    CHECK(copy_of(r.classifier->trunk().buffers()) != copy_of(start.trunk().buffers()));  // running statistics
    CHECK(r.steps == 2);
  }
}

TEST_CASE("fine-tuning falls by its milestones, is deterministic, and says what a wrong rate does") {
  const auto device = open_backend();
  const auto set = open_dataset("synthetic:shapes?size=16&limit=64");
  FinetuneOptions o = tiny_recipe(5);
  std::vector<double> trunk, head;
  o.head_rate = 0.5;
  o.after_epoch = [&](const FinetuneEpoch& line) {
    trunk.push_back(line.trunk_rate);
    head.push_back(line.head_rate);
    CHECK((line.top1 >= 0) == (line.epoch == 5 || line.epoch % 2 == 0));
  };
  o.eval_every = 2;
  const FinetuneResult first = finetune(*device, tiny_model(), nullptr, *set, set.get(), o);
  for (size_t e = 0; e < 5; ++e) {
    const double factor = e < 3 ? 1 : e < 4 ? 0.2 : 0.04;  // milestones at 0.6 and 0.8 of 5 epochs
    CHECK(trunk[e] == doctest::Approx(0.1 * factor));
    CHECK(head[e] == doctest::Approx(0.5 * factor));
  }
  o.after_epoch = {};
  const FinetuneResult second = finetune(*device, tiny_model(), nullptr, *set, set.get(), o);
  CHECK(copy_of(first.classifier->trunk().master()) == copy_of(second.classifier->trunk().master()));
  CHECK(first.best_top1 >= first.top1);
  o.trunk_rate = o.head_rate = 1e20;
  CHECK(contains(error_of([&] { finetune(*device, tiny_model(), nullptr, *set, set.get(), o); }), "not finite"));
}

TEST_CASE("on few labels a trained trunk passes a random one, and a sure prediction has little entropy") {
  const auto device = open_backend();
  const auto train = open_dataset("synthetic:shapes?size=16&limit=640");
  const auto test = open_dataset("synthetic:shapes?size=16&split=test&limit=200");
  const std::unique_ptr<Encoder> trained = trained_encoder(*device);

  std::vector<int> labels;
  for (int64_t i = 0; i < train->size(); ++i) labels.push_back(train->label(i));
  // Rounding alone moves one of these accuracies by several points: the mean of three draws is what is judged.
  double tuned_mean = 0, scratch_mean = 0;
  FinetuneResult tuned;
  FinetuneOptions o;
  for (uint64_t draw = 0; draw < 3; ++draw) {
    const Subset few(*train, balanced_labels(labels, train->class_count(), 0.1, draw));
    o = tiny_recipe(20);
    o.batch_size = 16;
    o.trunk_rate = 0.01;
    o.head_rate = 0.2;
    // The trunk alone is taken over; the head starts anew.
    tuned = finetune(*device, tiny_model(), &trained->params(), few, test.get(), o);
    o.trunk_rate = o.head_rate = 0.05;
    const FinetuneResult scratch = finetune(*device, tiny_model(), nullptr, few, test.get(), o);
    MESSAGE(cat("64 labels: {:.1f} % from a trained trunk, {:.1f} % from nothing", tuned.top1, scratch.top1));
    tuned_mean += tuned.top1 / 3;
    scratch_mean += scratch.top1 / 3;
  }
  CHECK(tuned_mean > scratch_mean + 4);

  const Predictions sure = predict(*device, *tuned.classifier, *test, o.eval);
  CHECK(sure.top1 == tuned.top1);
  double of_right = 0, of_wrong = 0;
  int64_t right = 0;
  for (size_t i = 0; i < sure.label.size(); ++i) {
    const bool is_right = sure.label[i] == test->label(static_cast<int64_t>(i));
    (is_right ? of_right : of_wrong) += sure.entropy[i];
    right += is_right;
  }
  const auto wrong = static_cast<int64_t>(sure.label.size()) - right;
  REQUIRE(right > 0);
  REQUIRE(wrong > 0);
  CHECK(of_right / static_cast<double>(right) < of_wrong / static_cast<double>(wrong));
  // A head of zeros says nothing: log2(C) bits.
  fill(tuned.classifier->head().master(), 0);
  const Predictions unsure = predict(*device, *tuned.classifier, *test, o.eval);
  CHECK(unsure.entropy[0] == doctest::Approx(std::log2(test->class_count())));
  CHECK(unsure.label[0] == 0);
}

TEST_CASE("the augmented probe tells blocks apart and chooses its rate on the hold-out") {
  const auto device = open_backend();
  const auto train = open_dataset("synthetic:shapes?size=16&limit=400");
  const auto test = open_dataset("synthetic:shapes?size=16&split=test&limit=80");
  const std::unique_ptr<Encoder> trained = trained_encoder(*device);
  const Encoder& encoder = *trained;
  const std::vector<float> before = copy_of(encoder.params().master()),
                           statistics = copy_of(encoder.params().buffers());
  AugmentedProbeOptions o;
  o.learning_rates = {1e-9, 3};
  o.epochs = 6;
  o.batch_size = 20;
  o.holdout = 0.3;  // images enough that chance does not pass what was learnt
  o.blocks = 3;
  o.augment = plain_augment(16);
  o.eval = tiny_recipe(1).eval;
  int64_t steps = 0;
  o.progress = [&](int64_t done, int64_t total, double) {
    steps = done;
    CHECK(total == 6 * 14);
  };
  const AugmentedProbeResult r = linear_probe_augmented(*device, encoder, *train, *test, o);
  CHECK(steps == 84);
  CHECK(r.train_images == 280);
  REQUIRE(r.blocks.size() == 3);
  CHECK(r.blocks[0].name == "layer3.1");
  CHECK(r.blocks[2].name == "layer4.1");
  CHECK(r.blocks[0].dim == 32);
  CHECK(r.blocks[2].dim == 64);
  double mean = 0;
  for (const ProbedBlock& block : r.blocks) {
    // The other does not learn; over six seeds layer4 was 12 points or more ahead with this one, layer3 as few as 2.
    if (block.name.starts_with("layer4")) CHECK(block.learning_rate == 3);
    CHECK(block.rate_top1.size() == 2);
    CHECK(block.best_top1 >= block.top1);
    mean += block.top1 / 3;
  }
  CHECK(mean > 15);  // ten classes; 20 to 28 over six seeds
  CHECK(copy_of(encoder.params().master()) == before);
  CHECK(copy_of(encoder.params().buffers()) == statistics);
  o.learning_rates = {3};
  o.blocks = 1;
  o.epochs = 1;
  o.progress = {};
  CHECK(linear_probe_augmented(*device, encoder, *train, *test, o).train_images == 400);  // one rate: no hold-out
  o.blocks = 9;
  CHECK(contains(error_of([&] { linear_probe_augmented(*device, encoder, *train, *test, o); }), "8 residual blocks"));
}

TEST_CASE("detectron2's names are those of its ResNet, and back") {
  const std::map<std::string, std::string> pairs{
      {"conv1.weight", "stem.conv1.weight"},
      {"bn1.running_var", "stem.conv1.norm.running_var"},
      {"layer1.0.conv2.weight", "res2.0.conv2.weight"},
      {"layer3.5.bn3.bias", "res4.5.conv3.norm.bias"},
      {"layer4.0.downsample.0.weight", "res5.0.shortcut.weight"},
      {"layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm.running_mean"}};
  for (const auto& [ours, theirs] : pairs) {
    CHECK(detectron2_name(ours) == theirs);
    CHECK(torchvision_name(theirs) == ours);
  }
  for (const char* name : {"fc.0.weight", "bn1.num_batches_tracked", "layer1.conv1.weight"})
    CHECK(detectron2_name(name).empty());
  CHECK(torchvision_name("proposal_generator.conv.weight").empty());
  const auto device = open_backend();
  for (int depth : {18, 50}) {
    Params params(*device);
    const ResNet net(params, {.depth = depth, .width = 4});
    params.build(0, false);
    std::set<std::string> seen;
    for (const NamedArray& a : to_host(params, "")) {
      CHECK(torchvision_name(detectron2_name(a.name)) == a.name);
      CHECK(seen.insert(detectron2_name(a.name)).second);
    }
  }
}

TEST_CASE("an ONNX model holds every weight") {
  const auto device = open_backend();
  const Encoder encoder(*device, tiny_model(), 3, 2, false);
  const std::vector<NamedArray> weights = to_host(encoder.params(), "");
  const std::string model = onnx_resnet(weights, {{"mean", "0,0,0"}});
  const std::map<std::string, NamedArray> read = onnx_initializers(model);
  CHECK(read.size() == weights.size());
  for (const NamedArray& a : weights) {
    REQUIRE(read.contains(a.name));
    CHECK(read.at(a.name).shape == a.shape);
    CHECK(read.at(a.name).data == a.data);
  }
  CHECK(contains(error_of([&] { onnx_initializers(model.substr(0, model.size() / 2)); }), "no ONNX model"));
  CHECK(contains(error_of([&] { onnx_initializers("not a model"); }), "no ONNX model"));
  std::vector<NamedArray> fewer = weights;
  std::erase_if(fewer, [](const NamedArray& a) { return a.name == "layer2.0.bn1.bias"; });
  CHECK(contains(error_of([&] { onnx_resnet(fewer, {}); }), "lack 'layer2.0.bn1.bias'"));
}

TEST_CASE("detectron2's pickle takes f32 alone") {
  const std::vector<int32_t> whole{1};
  CHECK(contains(error_of([&] { detectron2_pickle({{"x", DType::i32, {1}, whole.data()}}, "csml"); }), "takes f32"));
}
