// Levels, crops and bases: whole steps against PyTorch, limits against methods that are known, the ablations' keys,
// recorded steps, and steps that change nothing.
#include <cstdlib>
#include <cstring>
#include <map>

#include "csml/method/resolve.h"
#include "csml/method/siamese.h"
#include "data/dataset.h"
#include "engine/step.h"
#include "models/weights.h"

#include "tests/backend.h"
#include "tests/files.h"
#include "tests/golden.h"

using namespace csml;
using namespace csml::test;

namespace {

constexpr int64_t kBatch = 8, kSize = 16;

Config small_config(const std::string& method) {
  Config c;
  c.augment.crop_size = kSize;
  c.model = {.depth = 18, .stem = "cifar", .width = 2, .head_hidden = 0, .head_mlp = true, .dim = 16};
  c.method.name = method;
  c.method.momentum = 0.99;
  c.method.temperature = 0.2;
  c.method.queue = 20;
  c.method.bn_group_size = 4;
  c.method.weights = {0.5, 0.5};
  c.method.warmup_weights = {0.5, 0.5};
  c.optimizer.weight_decay = 5e-4f;
  c.train.batch_size = kBatch;
  return c;
}

std::unique_ptr<Siamese> make(Device& device, Config config) {
  resolve(config);
  return std::make_unique<Siamese>(device, config, 3, plan_of(config));
}

std::map<std::string, std::vector<std::byte>> snapshot(Method& method) {
  std::map<std::string, std::vector<std::byte>> all;
  auto put = [&](const std::string& name, const Tensor& t) {
    all[name].resize(t.bytes());
    t.download_bytes(all[name].data());
  };
  put("q parameters", method.query_encoder().params().master());
  put("q statistics", method.query_encoder().params().buffers());
  put("k parameters", method.key_encoder().params().master());
  put("k statistics", method.key_encoder().params().buffers());
  for (const auto& [name, tensor] : method.state()) put(name, tensor);
  return all;
}

std::string changes(const std::map<std::string, std::vector<std::byte>>& a,
                    const std::map<std::string, std::vector<std::byte>>& b) {
  std::string names;
  for (const auto& [name, bytes] : a)
    if (!b.contains(name) || b.at(name) != bytes) names += (names.empty() ? "" : ", ") + name;
  return names;
}

Tensor hashed_view(Device& device, const std::string& name, int64_t size = kSize) {
  std::vector<float> values(static_cast<size_t>(kBatch * size * size * 3));
  const uint64_t seed = test::seed_of(name);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(3.4 * hash_uniform(seed, i) - 1.7);
  return Tensor::from(device, {kBatch, size, size, 3}, values);
}

Siamese::Given given_for(Device& device, const Siamese& method, const std::string& prefix) {
  Siamese::Given given;
  for (const ViewSpec& view : method.views())
    given.images.push_back(hashed_view(device, cat("{}/{}", prefix, view.number), view.augment.crop_size));
  given.permutations = {
      {6, 1, 4, 3, 0, 7, 2, 5}, {3, 4, 5, 6, 7, 0, 1, 2}, {1, 0, 3, 2, 5, 4, 7, 6}, {7, 6, 5, 4, 3, 2, 1, 0}};
  given.box = {2, 3, 9, 12};
  given.lambda = 1 - 63.f / 256;
  given.weights = {0.5f, 0.5f};
  given.learning_rate = 0.03f;
  return given;
}

/// One step from given inputs; the log and everything that changed.
nlohmann::json run_step(Device& device, Siamese& method, const std::string& prefix = "plans") {
  method.load_given(given_for(device, method, prefix));
  method.step();
  return method.measure(1);
}

double relative_difference(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = a.host<float>(), y = b.host<float>();
  REQUIRE(x.size() == y.size());
  double difference = 0, largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference = std::max(difference, std::abs(double{x[i]} - y[i]));
    largest = std::max(largest, std::abs(double{y[i]}));
  }
  return difference / largest;
}

/// Configurations of the golden steps (tests/golden/README.md, "Levels, crops and bases").
Config golden_config(const std::string& name) {
  Config c = small_config(name.starts_with("csml") ? "csml" : name);
  if (name.starts_with("csml_global") || name.starts_with("csml_patch")) {
    c.method.levels = {"res4", "res5"};
    c.method.level_weights = {0.5, 1};
  }
  if (name == "csml_patch" || name == "csml_patch_crops") c.method.alignment = "patch";
  if (name == "csml_patch_lite") c.method.alignment = "patch-lite";
  if (name.ends_with("_crops")) {
    c.method.crop_sizes = {12, 8};
    c.method.crop_counts = {1, 2};
  }
  if (name.starts_with("csml_simclr")) c.method.base = "simclr";
  if (name == "csml_byol") c.method.base = "byol";
  if (name.starts_with("csml_mocov3")) c.method.base = "mocov3";
  c.method.partner_negatives = name.ends_with("_partners");
  c.method.key_gradient = !name.ends_with("_constant");
  return c;
}

void compare(const std::string& name) {
  CAPTURE(name);
  const auto device = open_backend();
  Golden golden("plans_" + name);
  const auto method = make(*device, golden_config(name));
  CHECK(from_host(method->query_encoder().params(), golden.arrays("before/q/"), "before/q/").empty());
  if (&method->key_encoder() != &method->query_encoder())
    CHECK(from_host(method->key_encoder().params(), golden.arrays("before/k/"), "before/k/").empty());
  for (const auto& [key, tensor] : method->state())
    if (key.starts_with("queue.") && !key.ends_with(".cursor")) tensor.upload(golden.values("before/" + key));
  Siamese::Given given;
  for (size_t v = 0; v < method->views().size(); ++v) given.images.push_back(golden.tensor(*device, cat("view{}", v)));
  for (int i = 0; golden.contains(cat("perm{}", i)); ++i)
    given.permutations.push_back(golden.values<int32_t>(cat("perm{}", i)));
  if (golden.contains("box")) {
    const std::vector<int32_t> box = golden.values<int32_t>("box");
    std::copy(box.begin(), box.end(), given.box.begin());
    given.lambda = golden.scalar("lambda");
    given.weights = golden.values("weights");
  }
  if (golden.contains("corner")) {
    const std::vector<int32_t> corner = golden.values<int32_t>("corner");
    given.corners = {{0, 0}, {corner[0], corner[1]}};  // res5 first
  }
  given.learning_rate = 0.06f;
  method->load_given(given);
  method->step();
  const nlohmann::json log = method->measure(1);
  CHECK(log["finite"].get<bool>());
  golden.expect("loss", {log["loss"].get<float>()});
  const Params& q = method->query_encoder().params();
  golden.expect_all("grad/", to_host(q, "", q.grad()));
  golden.expect_all("after/q/", to_host(q, ""));
  if (&method->key_encoder() != &method->query_encoder())
    golden.expect_all("after/k/", to_host(method->key_encoder().params(), ""));
  for (const auto& [key, tensor] : method->state())
    if (key.starts_with("queue.") && !key.ends_with(".cursor")) golden.expect("after/" + key, tensor);
  CHECK(golden.unseen().empty());
}

struct Environment {
  Environment(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Environment() { ::unsetenv(name_); }
  const char* name_;
};

/// Every kind of method, each with all it can have; on the executor, which is slow, the two that between them make
/// every call of the others.
std::vector<std::pair<std::string, Config>> all_kinds() {
  std::vector<std::pair<std::string, Config>> kinds;
  for (const char* base : {"moco", "simclr", "byol", "mocov3"}) {
    Config plain = small_config(base), over = small_config("csml");
    over.method.base = base;
    plain.method.crop_sizes = over.method.crop_sizes = {12};
    plain.method.levels = over.method.levels = {"res4", "res5"};
    if (std::string(base) != "simclr") over.method.alignment = "patch";
    kinds.emplace_back(base, plain);
    kinds.emplace_back(cat("csml over {}", base), over);
  }
  Config symmetric = small_config("moco");
  symmetric.method.directions = 2;
  symmetric.method.form = "out";
  symmetric.method.queue_filter = 0.5;
  kinds.emplace_back("symmetric moco", symmetric);
  if (backend_under_test() == "simt")
    std::erase_if(kinds,
                  [](const auto& kind) { return kind.first != "csml over byol" && kind.first != "symmetric moco"; });
  return kinds;
}

}  // namespace

TEST_CASE("steps of CsMl with two levels equal PyTorch: global") { compare("csml_global"); }
TEST_CASE("steps of CsMl with two levels equal PyTorch: patch") { compare("csml_patch"); }
TEST_CASE("steps of CsMl with two levels equal PyTorch: patch-lite") { compare("csml_patch_lite"); }
TEST_CASE("steps of CsMl with small crops equal PyTorch") { compare("csml_crops"); }
TEST_CASE("steps of CsMl with two levels and small crops equal PyTorch") {
  compare("csml_global_crops");
  compare("csml_patch_crops");
}
TEST_CASE("steps of SimCLR equal PyTorch") { compare("simclr"); }
TEST_CASE("steps of BYOL equal PyTorch") { compare("byol"); }
TEST_CASE("steps of MoCo v3 equal PyTorch") { compare("mocov3"); }
TEST_CASE("steps of CsMl over SimCLR equal PyTorch") { compare("csml_simclr"); }
TEST_CASE("steps of CsMl over BYOL equal PyTorch") { compare("csml_byol"); }
TEST_CASE("steps of CsMl over MoCo v3 equal PyTorch") { compare("csml_mocov3"); }

TEST_CASE("steps of CsMl with the partners' views as negatives equal PyTorch") {
  compare("csml_simclr_partners");
  compare("csml_mocov3_partners");
}
TEST_CASE("steps of CsMl over SimCLR with constant keys equal PyTorch") { compare("csml_simclr_constant"); }

TEST_CASE("CsMl without partner is its base, bit for bit, for every base") {
  for (const char* base : {"moco", "simclr", "byol", "mocov3"}) {
    CAPTURE(std::string(base));
    const auto device = open_backend();
    Config over = small_config("csml");
    over.method.base = base;
    over.method.terms = {"q"};
    over.method.weights = over.method.warmup_weights = {1, 0};
    const auto csml = make(*device, over), plain = make(*device, small_config(base));
    CHECK_FALSE(csml->needs_neighbors());
    for (int step = 0; step < 2; ++step) {
      Siamese::Given given = given_for(*device, *plain, cat("limit {}", step));
      given.weights = {1, 0};
      csml->load_given(given);
      plain->load_given(given);
      csml->step();
      plain->step();
      CHECK(csml->measure(1)["loss"] == plain->measure(1)["loss"]);
      CHECK(changes(snapshot(*csml), snapshot(*plain)) == "");
    }
  }
}

TEST_CASE("a patch as large as the map is the whole map") {
  for (const char* alignment : {"patch", "patch-lite"}) {
    const auto device = open_backend();
    Config moco = small_config("moco");
    moco.method.levels = {"res4", "res5"};
    const auto global = make(*device, moco);
    moco.method.alignment = alignment;
    moco.method.patch_window = 4;  // res4 of 16 pixels
    const auto patch = make(*device, moco);
    CHECK(run_step(*device, *global)["loss"] == run_step(*device, *patch)["loss"]);
    CHECK(relative_difference(patch->query_encoder().params().grad(), global->query_encoder().params().grad()) < 1e-5);
    // Forward is the same bit for bit; backward sums the map's gradients in another order.
    const std::string differs = changes(snapshot(*global), snapshot(*patch));
    CHECK_MESSAGE((differs == "" || differs == "k parameters, optimizer.momentum, q parameters"), differs);

    Config csml = small_config("csml");
    csml.method.levels = {"res4", "res5"};
    const auto csml_global = make(*device, csml);
    csml.method.alignment = alignment;
    csml.method.patch_window = 4;
    const auto csml_patch = make(*device, csml);
    const double want = run_step(*device, *csml_global)["loss"].get<double>();
    CHECK(run_step(*device, *csml_patch)["loss"].get<double>() == doctest::Approx(want).epsilon(1e-6));
    CHECK(relative_difference(csml_patch->query_encoder().params().grad(),
                              csml_global->query_encoder().params().grad()) < 1e-4);
    CHECK(relative_difference(csml_patch->queue(1).rows(), csml_global->queue(1).rows()) == 0);
  }
}

TEST_CASE("a second level of weight 0 leaves the first as it is, and queues get their own level's keys") {
  const auto device = open_backend();
  Config two = small_config("csml");
  two.method.levels = {"res5", "res3"};
  two.method.level_weights = {1, 0};
  const auto both = make(*device, two), one = make(*device, small_config("csml"));
  const double want = run_step(*device, *one)["loss"].get<double>();
  const nlohmann::json log = run_step(*device, *both);
  CHECK(log["loss"].get<double>() == doctest::Approx(want).epsilon(1e-6));
  CHECK(log["loss_levels"].size() == 2);
  CHECK(log["loss_levels"]["res3"].get<double>() > 0);
  CHECK(log["loss_terms"].contains("res3.m"));
  CHECK(relative_difference(both->queue(0).rows(), one->queue(0).rows()) == 0);
  const Tensor top = both->queue(0).rows().rows(0, kBatch), low = both->queue(1).rows().rows(0, kBatch);
  CHECK(relative_difference(low, top) > 1e-2);
}

TEST_CASE("levels, windows and crops of the documented sizes") {
  Config c = small_config("csml");
  c.method.levels = {"res3", "res4", "res5"};
  c.method.alignment = "patch";
  c.augment.crop_size = 224;
  c.model.stem = "imagenet";
  std::vector<Level> levels = levels_of(c);
  REQUIRE(levels.size() == 3);
  CHECK(levels[0].name == "res5");
  CHECK(levels[0].window == 0);
  CHECK(levels[1].side == 14);
  CHECK(levels[1].window == 8);  // the authors' res4: 8 of 14, every 3
  CHECK(levels[1].stride == 3);
  CHECK(levels[2].side == 28);
  c.augment.crop_size = 32;
  c.model.stem = "cifar";
  levels = levels_of(c);
  CHECK(levels[1].side == 8);
  CHECK(levels[1].window == 5);
  CHECK(levels[1].stride == 2);

  c.augment.crop_size = 224;
  c.augment.scale_min = 0.2f;
  c.method.crop_sizes = {192, 160, 128, 96};
  const std::vector<AugmentConfig> crops = crop_recipes(c);
  REQUIRE(crops.size() == 4);
  CHECK(crops[0].scale_min == doctest::Approx(0.1714).epsilon(1e-3));
  CHECK(crops[3].scale_max == doctest::Approx(0.4286).epsilon(1e-3));
  c.method.crop_sizes = {96};
  c.method.crop_counts = {6};
  c.method.crop_scale_min = {0.05};
  c.method.crop_scale_max = {0.14};
  CHECK(crop_recipes(c).size() == 6);
  CHECK(crop_recipes(c)[5].scale_max == doctest::Approx(0.14));
}

TEST_CASE("the second views' blur and solarisation are their own where asked") {
  Config c = small_config("csml");
  resolve(c);
  for (const ViewSpec& view : plan_of(c).views) CHECK(view.augment.blur_p == c.augment.blur_p);
  c.method.second_blur_p = 0.1;
  c.method.second_solarize_p = 0.2;
  const std::vector<ViewSpec> views = plan_of(c).views;  // q, k, p, kp
  REQUIRE(views.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    CHECK(views[i].augment.blur_p == (i % 2 ? 0.1f : c.augment.blur_p));
    CHECK(views[i].augment.solarize_p == (i % 2 ? 0.2f : 0.f));
    CHECK(views[i].augment.gray_p == c.augment.gray_p);
  }
  c.method.name = "byol";
  CHECK(plan_of(c).views.at(0).augment.solarize_p == 0);
  CHECK(plan_of(c).views.at(1).augment.solarize_p == 0.2f);
}

TEST_CASE("running statistics follow the small crops or not, as method.crop_statistics says") {
  const auto device = open_backend();
  auto statistics = [&](bool crops, bool update) {
    Config c = small_config("moco");
    if (crops) c.method.crop_sizes = {12};
    c.method.crop_statistics = update;
    const auto method = make(*device, c);
    run_step(*device, *method);
    return method->query_encoder().params().buffers().host<float>();
  };
  CHECK(statistics(true, false) == statistics(false, true));
  CHECK(statistics(true, true) != statistics(false, true));
}

TEST_CASE("every choice of an ablation changes what is computed") {
  const auto device = open_backend();
  auto gradient = [&](const std::function<void(Config&)>& change) {
    Config c = small_config("csml");
    change(c);
    const auto method = make(*device, c);
    run_step(*device, *method);
    return method->query_encoder().params().grad().host<float>();
  };
  const std::vector<float> base = gradient([](Config&) {});
  CHECK(gradient([](Config&) {}) == base);
  for (const char* form : {"out", "in", "mil"}) CHECK(gradient([&](Config& c) { c.method.form = form; }) != base);
  CHECK(gradient([](Config& c) { c.method.queue_filter = 0.2; }) != base);
  CHECK(gradient([](Config& c) { c.method.terms = {"q", "p"}; }) != base);
  CHECK(gradient([](Config& c) { c.method.temperature = 0.1; }) != base);
  CHECK(gradient([](Config& c) { c.method.directions = 2; }) != base);
  // A filter that nothing reaches is no filter, but for rounding of another way to the same sum.
  const auto plain = make(*device, small_config("csml"));
  Config open = small_config("csml");
  open.method.queue_filter = 0.999999;
  const auto filtered = make(*device, open);
  const double want = run_step(*device, *plain)["loss"].get<double>();
  CHECK(run_step(*device, *filtered)["loss"].get<double>() == doctest::Approx(want).epsilon(1e-5));
}

TEST_CASE("the forms of the loss have the values of the hand-computed example") {
  // One anchor, logits of the positives 3 and 4, of the negatives -3, -4, 0, T = 0.2, weights 1/2
  const auto device = open_backend();
  const Tensor positives = Tensor::from(*device, {2, 1}, std::vector<float>{0.6f, 0.8f});
  const Tensor negatives = Tensor::from(*device, {1, 3}, std::vector<float>{-0.6f, -0.8f, 0.f});
  const Tensor weights = Tensor::from(*device, {2}, std::vector<float>{0.5f, 0.5f});
  using Form = Backend::Form;
  for (const auto& [form, want] : {std::pair{Form::csml, 0.0355930325763707}, std::pair{Form::out, 0.82746},
                                   std::pair{Form::in, 0.70735}, std::pair{Form::mil, 0.01420}})
    CHECK(multi_positive(Var(positives), Var(negatives), weights, {.temperature = 0.2f, .form = form}).value().item() ==
          doctest::Approx(want).epsilon(5e-4));
}

TEST_CASE("momentum rises to 1 along a cosine where asked") {
  const auto device = open_backend();
  Config c = small_config("byol");
  c.method.momentum_schedule = "cosine";
  c.train.epochs = 10;
  const auto method = make(*device, c);
  const auto dataset = open_dataset("synthetic:shapes?limit=40&size=20");
  LoaderOptions options;
  options.workers = 0;
  options.batch_size = kBatch;
  Loader loader(*dataset, method->views(), options);
  loader.start_epoch(0);
  Batch batch;
  REQUIRE(loader.next(batch));
  for (const auto& [progress, want] : {std::pair{0.0, 0.99}, std::pair{5.0, 0.995}, std::pair{10.0, 1.0}}) {
    method->load(batch, {.step = 0, .epoch = 0, .progress = progress});
    method->step();
    CHECK(method->measure(1)["momentum"].get<double>() == doctest::Approx(want).epsilon(1e-6));
  }
}

TEST_CASE("every kind of method: recorded steps are the eager ones, bad input changes nothing, state is whole") {
  for (const auto& [name, config] : all_kinds()) {
    CAPTURE(name);
    const auto device = open_backend();
    const auto recorded = make(*device, config), eager = make(*device, config);
    Step recorded_step(*device, [&] { recorded->step(); });
    const auto start = snapshot(*recorded);
    for (int step = 0; step < 4; ++step) {
      const Siamese::Given given = given_for(*device, *eager, cat("{}", step % 2));
      // A recording reads the memory it was made with: the images move into it.
      static std::vector<Tensor> held;
      if (step == 0) held = given.images;
      for (size_t v = 0; v < held.size(); ++v) copy(given.images[v], held[v]);
      Siamese::Given same = given;
      same.images = held;
      recorded->load_given(same);
      eager->load_given(given);
      recorded_step.run();
      eager->step();
      CHECK(changes(snapshot(*recorded), snapshot(*eager)) == "");
      if (step == 3) held.clear();
    }
    CHECK(recorded_step.recorded());
    const nlohmann::json log = eager->measure(4);
    CHECK(log["finite"].get<bool>());
    CHECK(std::isfinite(log["loss"].get<double>()));
    for (const auto& [key, bytes] : snapshot(*eager)) CHECK_MESSAGE(bytes != start.at(key), cat("{}: {}", name, key));

    for (size_t v = 0; v < eager->views().size(); ++v) {
      const auto before = snapshot(*eager);
      Siamese::Given given = given_for(*device, *eager, "bad");
      std::vector<float> values = given.images[v].host<float>();
      values[101] = NAN;
      given.images[v].upload(values);
      eager->load_given(given);
      eager->step();
      CHECK_FALSE(eager->measure(1)["finite"].get<bool>());
      CHECK(changes(before, snapshot(*eager)) == "");
      eager->go_on();
    }

    // Another method that takes over the state goes on alike: nothing is missing from state().
    const auto other = make(*device, config);
    const auto copy_all = [](const Params& from, const Params& to) {
      copy(from.master(), to.master());
      copy(from.buffers(), to.buffers());
    };
    copy_all(eager->query_encoder().params(), other->query_encoder().params());
    copy_all(eager->key_encoder().params(), other->key_encoder().params());
    const auto from = eager->state(), to = other->state();
    REQUIRE(from.size() == to.size());
    for (size_t i = 0; i < from.size(); ++i) copy(from[i].second, to[i].second);
    run_step(*device, *eager, "after");
    run_step(*device, *other, "after");
    CHECK(changes(snapshot(*eager), snapshot(*other)) == "");
  }
}

TEST_CASE("every base has what its configuration promises") {
  const auto device = open_backend();
  for (const Base& base : bases()) {
    Config c = small_config(base.name);
    resolve(c);
    CHECK(c.method.directions == base.directions);
    CHECK(c.model.head_bn == base.head_bn);
    const auto method = make(*device, c);
    CHECK((&method->key_encoder() != &method->query_encoder()) == base.momentum_encoder);
    bool predictor = false, queue = false;
    for (const Params::Entry& e : method->query_encoder().params().entries())
      predictor |= e.name.starts_with("predictors.");
    for (const auto& [name, tensor] : method->state()) queue |= name.starts_with("queue.");
    CHECK(predictor == base.predictor);
    CHECK(queue == base.queue);
    CHECK((base.queue || base.negatives != Base::Negatives::queue));
  }
  Config patch = small_config("simclr");
  patch.method.levels = {"res4", "res5"};
  patch.method.alignment = "patch";
  CHECK_THROWS_AS(make(*device, patch), UsageError);
}
