// Calls that change state, and augmentation, in the table.
#include <limits>

#include "kernels/color.h"
#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

/// The `finite` argument of a commit call: not given, or holding this.
enum class Flag { absent, yes, no };
constexpr Flag kFlags[] = {Flag::absent, Flag::yes, Flag::no};

const char* text_of(Flag flag) { return flag == Flag::absent ? "" : flag == Flag::yes ? " finite 1" : " finite 0"; }

/// Adds the flag to a case whose reference assumes that it does not hold 0.
OpCase with_flag(OpCase c, Flag flag) {
  c.detail += text_of(flag);
  c.same_for_any_threads = true;
  if (flag != Flag::absent) c.args.push_back(input("finite", {1}, value(flag == Flag::yes), DType::i32));
  if (flag == Flag::no) {
    c.reference = [](const Arrays& in, Arrays& out) { out = in; };
    for (Arg& arg : c.args) arg.tolerance = kExact;
  }
  return c;
}

OpCase finite_case(int64_t n, Write write, double old, double planted, int64_t at) {
  return {
      .op = "all_finite",
      .detail = cat("[{}] {} at {}, flag {}{}", n, planted, at, old, test::text_of(write)),
      .args = {input("x", {n}), write == Write::accumulate ? in_out("flag", {1}, value(old), kExact, DType::i32)
                                                           : output("flag", {1}, kExact, DType::i32)},
      .call = [write](Backend& be, const Bound& b) { be.all_finite({.x = b["x"], .flag = b["flag"], .write = write}); },
      .reference =
          [write](const Arrays& in, Arrays& out) {
            bool all = write == Write::overwrite || in.at("flag")[0] == 1;
            for (double x : in.at("x").v) all = all && std::isfinite(x);
            out["flag"] = Array({1}, DType::i32);
            out["flag"][0] = all;
          },
      .prepare =
          [=](Arrays& in) {
            if (at >= 0) in["x"][at] = planted;
          },
      .flops = static_cast<double>(n),
      .same_for_any_threads = true};
}

/// What a commit does beside its optimizer's step.
struct Extras {
  int64_t averaged = 0;       // elements of the average; 0: none
  DType copies = DType::f32;  // type of the copies; f32: none
  double inverse_scale = 0;   // 0: not given
};

/// A gradient as the update sees it.
Array unscaled(const Arrays& in) {
  Array grad = in.at("grad");
  if (const auto scale = in.find("inverse_scale"); scale != in.end())
    for (double& g : grad.v) g *= scale->second[0];
  return grad;
}

OpCase sgd_case(int64_t n, float momentum, float weight_decay, const Extras& extras = {}) {
  OpCase c{.op = "sgd",
           .detail = cat("[{}] momentum {} decay {}", n, momentum, weight_decay),
           .args = {input("grad", {n}), in_out("param", {n}), in_out("buffer", {n}),
                    input("learning_rate", {1}, value(0.03))},
           .call =
               [=](Backend& be, const Bound& b) {
                 be.sgd({.grad = b["grad"],
                         .param = b["param"],
                         .buffer = b["buffer"],
                         .learning_rate = b["learning_rate"],
                         .finite = b["finite"],
                         .momentum = momentum,
                         .weight_decay = weight_decay,
                         .inverse_scale = b["inverse_scale"],
                         .average = b["average"],
                         .average_momentum = b["average_momentum"],
                         .param_copy = b["param_copy"],
                         .average_copy = b["average_copy"]});
               },
           .reference =
               [=](const Arrays& in, Arrays& out) {
                 out = in;
                 reference::sgd(unscaled(in), out["param"], out["buffer"], in.at("learning_rate")[0], momentum,
                                weight_decay);
                 if (extras.averaged) {
                   Array first({extras.averaged});
                   std::copy_n(out["param"].v.begin(), extras.averaged, first.v.begin());
                   reference::ema(first, out["average"], in.at("average_momentum")[0]);
                 }
                 if (in.count("param_copy")) out["param_copy"].v = out["param"].v;
                 if (in.count("average_copy")) out["average_copy"].v = out["average"].v;
               },
           .flops = 8.0 * static_cast<double>(n) + 4.0 * static_cast<double>(extras.averaged)};
  if (extras.inverse_scale > 0) {
    c.detail += cat(" scale 1/{}", 1 / extras.inverse_scale);
    c.args.push_back(input("inverse_scale", {1}, value(extras.inverse_scale)));
  }
  if (extras.averaged) {
    c.detail += cat(" average [{}]", extras.averaged);
    c.args.push_back(in_out("average", {extras.averaged}));
    c.args.push_back(input("average_momentum", {1}, value(0.99)));
  }
  if (extras.copies != DType::f32) {
    c.detail += cat(" copies {}", name_of(extras.copies));
    c.args.push_back(in_out("param_copy", {n}, normal(), {}, extras.copies));
    if (extras.averaged) c.args.push_back(in_out("average_copy", {extras.averaged}, normal(), {}, extras.copies));
  }
  return c;
}

OpCase lars_case(const std::vector<double>& offsets, const std::vector<double>& adapt, float weight_decay,
                 double inverse_scale = 1) {
  const int64_t n = static_cast<int64_t>(offsets.back()), segments = static_cast<int64_t>(adapt.size());
  return {
      .op = "lars",
      .detail = cat("[{}] segments {} decay {} scale 1/{}", n, segments, weight_decay, 1 / inverse_scale),
      .args = {input("grad", {n}), in_out("param", {n}), in_out("buffer", {n}),
               input("offsets", {segments + 1}, values(offsets), DType::i64), input("adapt", {segments}, values(adapt)),
               input("learning_rate", {1}, value(0.3)), input("inverse_scale", {1}, value(inverse_scale))},
      .call =
          [=](Backend& be, const Bound& b) {
            be.lars({.grad = b["grad"],
                     .param = b["param"],
                     .buffer = b["buffer"],
                     .offsets = b["offsets"],
                     .adapt = b["adapt"],
                     .learning_rate = b["learning_rate"],
                     .finite = b["finite"],
                     .momentum = 0.9f,
                     .weight_decay = weight_decay,
                     .trust = 0.02f,
                     .inverse_scale = b["inverse_scale"]});
          },
      .reference =
          [=](const Arrays& in, Arrays& out) {
            out = in;
            reference::lars(unscaled(in), out["param"], out["buffer"], in.at("offsets"), in.at("adapt"),
                            in.at("learning_rate")[0], 0.9f, weight_decay, 0.02f);
          },
      .prepare =
          [=](Arrays& in) {  // the third segment has no parameters, the fourth no gradient: the ratio is 1 there
            if (segments < 4) return;
            for (int64_t i = static_cast<int64_t>(offsets[2]); i < static_cast<int64_t>(offsets[3]); ++i)
              in["param"][i] = 0;
            for (int64_t i = static_cast<int64_t>(offsets[3]); i < static_cast<int64_t>(offsets[4]); ++i)
              in["grad"][i] = 0;
          },
      .flops = 10.0 * static_cast<double>(n)};
}

OpCase adamw_case(int64_t n, double step, float weight_decay, double inverse_scale = 1) {
  return {.op = "adamw",
          .detail = cat("[{}] step {} decay {} scale 1/{}", n, step, weight_decay, 1 / inverse_scale),
          .args = {input("grad", {n}), in_out("param", {n}), in_out("first", {n}, normal(0.1)),
                   in_out("second", {n}, uniform(0.01, 1)), in_out("step", {1}, value(step), kExact, DType::i64),
                   input("learning_rate", {1}, value(0.01)), input("inverse_scale", {1}, value(inverse_scale))},
          .call =
              [=](Backend& be, const Bound& b) {
                be.adamw({.grad = b["grad"],
                          .param = b["param"],
                          .first = b["first"],
                          .second = b["second"],
                          .step = b["step"],
                          .learning_rate = b["learning_rate"],
                          .finite = b["finite"],
                          .weight_decay = weight_decay,
                          .inverse_scale = b["inverse_scale"]});
              },
          .reference =
              [=](const Arrays& in, Arrays& out) {
                out = in;
                reference::adamw(unscaled(in), out["param"], out["first"], out["second"], out["step"],
                                 in.at("learning_rate")[0], 0.9f, 0.999f, 1e-8f, weight_decay);
              },
          .flops = 14.0 * static_cast<double>(n)};
}

OpCase ema_case(const Shape& s, double momentum) {
  return {.op = "ema",
          .detail = cat("{} momentum {}", s.text(), momentum),
          .args = {input("x", s), in_out("y", s), input("momentum", {1}, value(momentum))},
          .call =
              [](Backend& be, const Bound& b) {
                be.ema({.x = b["x"], .y = b["y"], .momentum = b["momentum"], .finite = b["finite"]});
              },
          .reference =
              [](const Arrays& in, Arrays& out) {
                out = in;
                reference::ema(in.at("x"), out["y"], in.at("momentum")[0]);
              },
          .flops = 3.0 * static_cast<double>(s.size())};
}

OpCase loss_scale_case(double scale, double steps, bool finite) {
  return {.op = "update_loss_scale",
          .detail = cat("{} after {} steps, finite {}", scale, steps, finite),
          .args = {in_out("scale", {2}, values({scale, 1 / scale}), kExact),
                   in_out("counters", {2}, values({steps, 5}), kExact, DType::i64),
                   in_out("finite", {1}, value(finite), kExact, DType::i32)},
          .call =
              [](Backend& be, const Bound& b) {
                be.update_loss_scale({.scale = b["scale"],
                                      .counters = b["counters"],
                                      .finite = b["finite"],
                                      .interval = 4,
                                      .smallest = 0.5f,
                                      .largest = 64});
              },
          .reference =
              [=](const Arrays& in, Arrays& out) {
                out = in;
                if (!finite && scale <= 0.5) return;
                const bool grows = finite && steps + 1 == 4;
                const double now = !finite ? std::max(scale / 2, 0.5) : grows ? std::min(2 * scale, 64.0) : scale;
                out["scale"].v = {now, 1 / now};
                out["counters"].v = {finite && !grows ? steps + 1 : 0, finite ? 5.0 : 6.0};
                out["finite"].v = {1};
              },
          .flops = 4};
}

OpCase ring_case(int64_t batch, int64_t d, int64_t keys, int64_t cursor) {
  return {.op = "ring_write",
          .detail = cat("{} rows of {} at {} of {}", batch, d, cursor, keys),
          .args = {input("rows", {batch, d}), in_out("queue", {keys, d}, normal(), kExact),
                   in_out("cursor", {1}, value(static_cast<double>(cursor)), kExact, DType::i64)},
          .call =
              [](Backend& be, const Bound& b) {
                be.ring_write({.rows = b["rows"], .queue = b["queue"], .cursor = b["cursor"], .finite = b["finite"]});
              },
          .reference =
              [](const Arrays& in, Arrays& out) {
                out = in;
                reference::ring_write(in.at("rows"), out["queue"], out["cursor"]);
              }};
}

OpCase augment_case(const Shape& s, const std::vector<ColorParams>& params, const std::string& what) {
  const std::array<float, 4> mean{0.485f, 0.456f, 0.406f, 0}, std{0.229f, 0.224f, 0.225f, 1};
  OpCase test{.op = "augment",
              .detail = s.text() + " " + what,
              .args = {input("images", s, below(256), DType::u8), output("y", s)},
              .call =
                  [=](Backend& be, const Bound& b) {
                    be.augment({.images = b["images"], .params = b["params"], .y = b["y"], .mean = mean, .std = std});
                  },
              .reference =
                  [=](const Arrays& in, Arrays& out) {
                    out["y"] =
                        reference::augment(in.at("images"), in.count("params") ? in.at("params") : Array(), mean, std);
                  },
              .same_for_any_threads = true};
  const double pixels = static_cast<double>(s[1] * s[2]);
  for (int64_t n = 0; n < s[0]; ++n) {  // about 100 a pixel, and two taps of each radius for three channels
    const float sigma = params.empty() ? 0 : params[static_cast<size_t>(n) % params.size()].blur_sigma;
    test.flops += pixels * (100 + (sigma > 0 ? 12.0 * (2 * std::ceil(3.0 * sigma) + 1) : 0));
  }
  if (params.empty()) return test;
  std::vector<double> flat;
  for (int64_t n = 0; n < s[0]; ++n) {
    float row[ColorParams::kColumns];
    std::memcpy(row, &params[static_cast<size_t>(n) % params.size()], sizeof row);
    flat.insert(flat.end(), row, row + ColorParams::kColumns);
  }
  test.args.push_back(input("params", {s[0], ColorParams::kColumns}, values(flat)));
  return test;
}

/// A view as pretraining draws it.
ColorParams drawn(Random& random) {
  ColorParams p;
  if (random.uniform() < 0.8f) {
    p.brightness = random.uniform(0.6f, 1.4f);
    p.contrast = random.uniform(0.6f, 1.4f);
    p.saturation = random.uniform(0.6f, 1.4f);
    p.hue = random.uniform(-0.1f, 0.1f);
    p.order = static_cast<float>(random.below(24));
  }
  p.gray = random.uniform() < 0.2f;
  p.blur_sigma = random.uniform() < 0.5f ? random.uniform(0.1f, 2.f) : 0;
  p.solarize = random.uniform() < 0.2f;
  p.flip = random.uniform() < 0.5f;
  return p;
}

OpCase cut_mix_case(const Shape& s, const std::vector<double>& box) {
  return {
      .op = "cut_mix",
      .detail = cat("{} box {} {} {} {}", s.text(), box[0], box[1], box[2], box[3]),
      .args = {input("a", s), input("b", s), input("box", {4}, values(box), DType::i32), output("y", s, kExact)},
      .call = [](Backend& be, const Bound& b) { be.cut_mix({.a = b["a"], .b = b["b"], .box = b["box"], .y = b["y"]}); },
      .reference = [](const Arrays& in,
                      Arrays& out) { out["y"] = reference::cut_mix(in.at("a"), in.at("b"), in.at("box")); },
      .same_for_any_threads = true};
}

}  // namespace

void add_commit_cases(OpCases& cases) {
  for (const double scale : {0.5, 1.0, 32.0, 64.0})
    for (const double steps : {0.0, 2.0, 3.0})
      for (const bool finite : {false, true}) cases.push_back(loss_scale_case(scale, steps, finite));
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  for (const int64_t n : {1, 17, 100003}) {
    for (const double planted : {kNan, kInf, -kInf, 3e38}) {
      cases.push_back(finite_case(n, Write::overwrite, 0, planted, n - 1));
      cases.push_back(finite_case(n, Write::accumulate, 1, planted, n / 2));
    }
    cases.push_back(finite_case(n, Write::overwrite, 0, 0, -1));
    cases.push_back(finite_case(n, Write::accumulate, 0, 0, -1));
    cases.push_back(finite_case(n, Write::accumulate, 1, 0, -1));
  }
  for (const Flag flag : kFlags) {
    for (const int64_t n : {1, 19, 70001}) {
      cases.push_back(with_flag(sgd_case(n, 0.9f, 1e-4f), flag));
      cases.push_back(with_flag(adamw_case(n, 0, 0.01f), flag));
      cases.push_back(with_flag(ema_case({n}, 0.99), flag));
    }
    cases.push_back(with_flag(sgd_case(33, 0.f, 0.f), flag));
    for (const DType copies : {DType::f32, DType::bf16, DType::f16}) {
      cases.push_back(with_flag(sgd_case(70001, 0.9f, 1e-4f, {70001, copies, 1.0 / 1024}), flag));
      cases.push_back(with_flag(sgd_case(4100, 0.9f, 1e-2f, {35, copies, 0.25}), flag));  // a predictor is not averaged
      cases.push_back(with_flag(sgd_case(19, 0.9f, 1e-2f, {0, copies, 0}), flag));
    }
    cases.push_back(with_flag(adamw_case(33, 5, 0.01f, 1.0 / 512), flag));
    cases.push_back(with_flag(lars_case({0, 70, 83, 115, 150}, {1, 0, 1, 1}, 1e-2f, 1.0 / 512), flag));
    cases.push_back(with_flag(adamw_case(33, 1000, 0.f), flag));
    cases.push_back(with_flag(ema_case({3, 5, 7}, 0), flag));
    cases.push_back(with_flag(ema_case({3, 5, 7}, 1), flag));
    cases.push_back(with_flag(lars_case({0, 7}, {1}, 1e-4f), flag));
    cases.push_back(with_flag(lars_case({0, 70, 83, 83 + 32, 150, 150, 151, 40000}, {1, 0, 1, 1, 1, 1, 1}, 0.f), flag));
    cases.push_back(with_flag(lars_case({0, 70, 83, 115, 150, 151, 40000}, {0, 1, 1, 1, 1, 1}, 1e-2f), flag));
    cases.push_back(with_flag(ring_case(4, 3, 12, 0), flag));
    cases.push_back(with_flag(ring_case(5, 7, 12, 9), flag));     // wraps
    cases.push_back(with_flag(ring_case(6, 130, 18, 12), flag));  // ends at the last row
    cases.push_back(with_flag(ring_case(8, 1, 8, 3), flag));      // as many rows as the ring
    cases.push_back(with_flag(ring_case(0, 4, 8, 3), flag));
    cases.push_back(with_flag(ring_case(20, 3, 8, 5), flag));  // more rows than the ring: the last ones stay
  }
}

void add_commit_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  const int64_t n = cifar ? 11'500'000 : 28'000'000;  // parameters of the ResNet with MoCo v2's head
  cases.push_back(sgd_case(n, 0.9f, 1e-4f));
  cases.push_back(ema_case({n}, 0.999));
  cases.push_back(sgd_case(n, 0.9f, 1e-4f, {n, DType::f32, 0}));
  cases.push_back(sgd_case(n, 0.9f, 1e-4f, {n, DType::bf16, 1}));
  for (Arg& arg : cases.back().args)  // written, not read
    if (arg.name.ends_with("_copy")) arg.role = Role::output;
  cases.push_back(finite_case(n, Write::overwrite, 0, 0, -1));
  cases.back().detail = cat("[{}]", n);
  std::vector<double> offsets{0}, adapt;  // filters and, as many, batch norm's scales and shifts
  for (const int layers = cifar ? 20 : 53; static_cast<int>(adapt.size()) < 2 * layers;) {
    const double filters = static_cast<double>(n) / layers - 1024;
    adapt.insert(adapt.end(), {1, 0});
    offsets.push_back(offsets.back() + std::floor(filters));
    offsets.push_back(offsets.back() + 1024);
  }
  cases.push_back(lars_case(offsets, adapt, 1e-4f));
  cases.back().crossings = {{"grad", 2}, {"param", 3}};  // norms come before the update
  cases.push_back(adamw_case(n, 1000, 0.1f));
  cases.push_back(loss_scale_case(1024, 7, true));
  cases.push_back(ring_case(batch, 128, cifar ? 4096 : 65536, 512));
  cases.back().crossings["queue"] = static_cast<double>(batch) / (cifar ? 4096 : 65536);  // only its new rows
}

void add_augment_cases(OpCases& cases) {
  for (const Shape& s : {Shape{2, 5, 7, 3}, Shape{3, 4, 4, 1}, Shape{1, 1, 1, 3}, Shape{0, 4, 4, 3}}) {
    cases.push_back(augment_case(s, {}, "normalise only"));
    cases.push_back(augment_case(s, {ColorParams{}}, "identity"));
    cases.push_back(augment_case(s, {{.flip = 1}}, "flip"));
    cases.push_back(augment_case(s, {{.gray = 1}}, "gray"));
    cases.push_back(augment_case(s, {{.solarize = 1}}, "solarize"));
    cases.push_back(augment_case(s, {{.blur_sigma = 0.1f}, {.blur_sigma = 0.5f}, {.blur_sigma = 2}}, "blur"));
    cases.push_back(augment_case(s, {{.brightness = 1.4f, .order = 0}}, "brightness"));
    cases.push_back(augment_case(s, {{.contrast = 0.6f, .order = 5}, {.contrast = 1.4f, .order = 5}}, "contrast"));
    cases.push_back(augment_case(s, {{.saturation = 1.4f, .order = 9}, {.saturation = 0, .order = 9}}, "saturation"));
    cases.push_back(
        augment_case(s, {{.hue = 0.1f, .order = 0}, {.hue = -0.5f, .order = 3}, {.hue = 0.5f, .order = 3}}, "hue"));
  }
  // Several tiles of a GPU's block; radii on both sides of what its shared memory holds.
  for (const Shape& s : {Shape{3, 35, 40, 3}, Shape{3, 5, 70, 1}})
    cases.push_back(augment_case(
        s, {{.blur_sigma = 2.6f, .flip = 1}, {.gray = 1, .blur_sigma = 1}, {.blur_sigma = 4, .solarize = 1}}, "blur"));
  std::vector<ColorParams> orders;
  for (int i = 0; i < 24; ++i)
    orders.push_back({.brightness = 1.3f, .contrast = 1.35f, .saturation = 0.7f, .hue = 0.08f, .order = float(i)});
  cases.push_back(augment_case({24, 9, 6, 3}, orders, "all orders"));
  cases.push_back(augment_case({24, 6, 9, 1}, orders, "all orders"));
  Random random = random_of("augment");
  // 40 x 37 pixels are more than one block of the CPU's passes, in rows that are no whole number of vectors.
  for (const Shape& s :
       {Shape{16, 32, 32, 3}, Shape{6, 33, 20, 3}, Shape{8, 28, 28, 1}, Shape{5, 3, 2, 3}, Shape{9, 40, 37, 3}}) {
    std::vector<ColorParams> params;
    for (int64_t n = 0; n < s[0]; ++n) params.push_back(drawn(random));
    cases.push_back(augment_case(s, params, "as drawn"));
  }

  for (const Shape& s : {Shape{2, 8, 6, 3}, Shape{3, 5, 5, 1}, Shape{1, 7, 4, 16}}) {
    const double h = static_cast<double>(s[1]), w = static_cast<double>(s[2]);
    cases.push_back(cut_mix_case(s, {0, 0, 0, 0}));
    cases.push_back(cut_mix_case(s, {0, 0, h, w}));
    cases.push_back(cut_mix_case(s, {1, 2, 4, 3}));
    cases.push_back(cut_mix_case(s, {2, 0, h, 1}));
  }
}

void add_augment_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  const int64_t side = cifar ? 32 : 224;
  const Shape images{batch, side, side, 3};
  std::vector<ColorParams> views;
  Random random = random_of("bench views");
  for (int64_t n = 0; n < batch; ++n) views.push_back(drawn(random));
  cases.push_back(augment_case(images, views, "views"));
  const double quarter = static_cast<double>(side / 4), wide = static_cast<double>(side);
  cases.push_back(cut_mix_case(images, {quarter, quarter, wide - quarter, wide - quarter}));
  cases.back().crossings = {{"a", 0.75}, {"b", 0.25}};
}

}  // namespace csml::test
