// Losses and search in the table.
#include "tests/op_cases.h"
#include "tests/reference.h"

namespace csml::test {

namespace {

struct Contrast {
  int64_t batch, d, keys;
  int positives = 1;
  float temperature = 0.2f;
  std::vector<double> weights;
  bool dquery = true, similarity = true;
};

OpCase info_nce_case(const Contrast& v) {
  const auto name_of_positive = [](int j) { return cat("positive{}", j); };
  const Shape rows{v.batch, v.d};
  OpCase test{.op = "info_nce",
              .detail = cat("{}x{} queue {} positives {} T {}{}{}", v.batch, v.d, v.keys, v.positives, v.temperature,
                            v.dquery ? "" : " no gradient", v.similarity ? "" : " no similarity"),
              .args = {input("query", rows, unit_rows()), input("weights", {v.positives}, values(v.weights)),
                       input("queue", {v.keys, v.d}, unit_rows()), output("loss", {1})},
              .call =
                  [=](Backend& be, const Bound& b) {
                    Backend::InfoNce args{.query = b["query"],
                                          .positives = {},
                                          .weights = b["weights"],
                                          .queue = b["queue"],
                                          .temperature = v.temperature,
                                          .loss = b["loss"],
                                          .dquery = b["dquery"],
                                          .positive_similarity = b["positive_similarity"],
                                          .negative_similarity = b["negative_similarity"]};
                    for (int j = 0; j < v.positives; ++j) args.positives.push_back(b[name_of_positive(j)]);
                    be.info_nce(args);
                  },
              .reference =
                  [=](const Arrays& in, Arrays& out) {
                    std::vector<Array> positives;
                    for (int j = 0; j < v.positives; ++j) positives.push_back(in.at(name_of_positive(j)));
                    const reference::InfoNce r =
                        reference::info_nce(in.at("query"), positives, in.at("weights"), in.at("queue"), v.temperature);
                    out["loss"] = out["negative_similarity"] = Array({1});
                    out["loss"][0] = r.loss;
                    out["dquery"] = r.dquery;
                    out["positive_similarity"] = r.positive_similarity;
                    out["negative_similarity"][0] = r.negative_similarity;
                  },
              .flops = 4.0 * static_cast<double>(v.batch * v.d * v.keys),
              .same_for_any_threads = true};
  for (int j = 0; j < v.positives; ++j) test.args.push_back(input(name_of_positive(j), rows, unit_rows()));
  if (v.dquery) test.args.push_back(output("dquery", rows));
  if (v.similarity) {
    test.args.push_back(output("positive_similarity", {v.positives}));
    // A mean of thousands of similarities of either sign, 1e-5 itself: what rounds is the similarities.
    const Tolerance cancels{1e-9, 5e-5, "terms of 0.1 cancel to a mean of 1e-5"};
    test.args.push_back(output("negative_similarity", {1}, cancels));
  }
  return test;
}

OpCase cross_entropy_case(const Shape& s, Fill fill, const std::string& what, bool all_outputs) {
  OpCase test{.op = "cross_entropy",
              .detail = s.text() + what + (all_outputs ? "" : " loss only"),
              .args = {input("logits", s, std::move(fill)), input("labels", {s[0]}, below(s[1]), DType::i32),
                       output("loss", {1})},
              .call =
                  [](Backend& be, const Bound& b) {
                    be.cross_entropy({.logits = b["logits"],
                                      .labels = b["labels"],
                                      .loss = b["loss"],
                                      .dlogits = b["dlogits"],
                                      .correct = b["correct"]});
                  },
              .reference =
                  [](const Arrays& in, Arrays& out) {
                    const reference::CrossEntropy r = reference::cross_entropy(in.at("logits"), in.at("labels"));
                    out["loss"] = out["correct"] = Array({1});
                    out["loss"][0] = r.loss;
                    out["dlogits"] = r.dlogits;
                    out["correct"][0] = r.correct;
                  },
              .flops = 4.0 * static_cast<double>(s.size())};
  if (all_outputs) {
    test.args.push_back(output("dlogits", s));
    test.args.push_back(output("correct", {1}, kExact));
  }
  return test;
}

enum class Exclude { absent, none, own };

OpCase top_k_case(int64_t m, int64_t n, int64_t d, int k, Exclude exclude, Fill fill, const std::string& what) {
  const char* text = exclude == Exclude::absent ? "" : exclude == Exclude::none ? " excluding none" : " excluding own";
  OpCase test{.op = "top_k",
              .detail = cat("{} of {} rows, {} queries of {}{}{}", k, n, m, d, what, text),
              .args = {input("queries", {m, d}, fill), input("bank", {n, d}, fill), output("scores", {m, k}),
                       output("index", {m, k}, kExact, DType::i32)},
              .call =
                  [k](Backend& be, const Bound& b) {
                    be.top_k({.queries = b["queries"],
                              .bank = b["bank"],
                              .exclude = b["exclude"],
                              .scores = b["scores"],
                              .index = b["index"],
                              .k = k});
                  },
              .reference =
                  [k, exclude](const Arrays& in, Arrays& out) {
                    const reference::TopK r = reference::top_k(
                        in.at("queries"), in.at("bank"), exclude == Exclude::absent ? Array() : in.at("exclude"), k);
                    out["scores"] = r.scores;
                    out["index"] = r.index;
                  },
              .flops = 2.0 * static_cast<double>(m * n * d),
              .same_for_any_threads = true};
  if (exclude != Exclude::absent)
    test.args.push_back(input(
        "exclude", {m},
        [=](Array& a, Random&, bool) {
          for (int64_t i = 0; i < a.size(); ++i) a[i] = exclude == Exclude::none ? -1 : static_cast<double>(i % n);
        },
        DType::i32));
  return test;
}

}  // namespace

void add_contrast_cases(OpCases& cases) {
  const Contrast losses[] = {{1, 1, 1, 1, 0.2f, {1}},
                             {5, 16, 33, 1, 0.2f, {1}},
                             {7, 19, 1000, 2, 0.2f, {0.7, 0.3}},
                             {32, 128, 2051, 3, 0.07f, {1, 0.5, 0.25}},
                             {65, 20, 1, 2, 0.1f, {0.5, 0.5}},
                             {300, 12, 1100, 2, 0.2f, {0.5, 0.5}},  // several tiles of queries
                             {3, 130, 17, 1, 0.2f, {1}},
                             {9, 8, 100, 2, 0.2f, {0, 1}},                      // a weight of zero
                             {6, 32, 513, 2, 0.01f, {1, 1}},                    // exp(s) overflows f32
                             {16, 64, 300, 8, 0.2f, {1, 2, 3, 4, 5, 6, 7, 8}},  // the longest list
                             {13, 24, 257, 2, 0.2f, {0.6, 0.4}, false, true},
                             {13, 24, 257, 1, 0.2f, {1}, true, false},
                             {13, 24, 257, 1, 0.2f, {1}, false, false}};
  for (const Contrast& v : losses) cases.push_back(info_nce_case(v));

  for (const Shape& s : {Shape{1, 1}, Shape{5, 10}, Shape{33, 1000}, Shape{257, 3}})
    for (const bool all : {true, false}) {
      cases.push_back(cross_entropy_case(s, normal(), "", all));
      cases.push_back(cross_entropy_case(s, normal(300), " large", all));
      cases.push_back(cross_entropy_case(s, below(3), " ties", all));
    }

  struct Search {
    int64_t m, n, d;
    int k;
  };
  const auto ties = [](Array& a, Random& random, bool) {
    for (double& x : a.v) x = static_cast<double>(random.below(3)) - 1;
  };
  const auto add_search = [&](const Search& s, Exclude e, bool tied) {
    cases.push_back(tied ? top_k_case(s.m, s.n, s.d, s.k, e, ties, " ties")
                         : top_k_case(s.m, s.n, s.d, s.k, e, sixteenths(), ""));
  };
  const Exclude excludes[] = {Exclude::absent, Exclude::none, Exclude::own};
  for (const Search& s : {Search{1, 1, 1, 1}, {5, 20, 8, 3}, {3, 7, 33, 7}, {3, 4, 6, 9}})
    for (const Exclude e : excludes)
      for (const bool tied : {false, true}) add_search(s, e, tied);
  // What a long search adds (tiles, long lists, few or many queries) does not depend on `exclude`: each meets two kinds.
  const Search longer[] = {{17, 1000, 16, 10}, {2, 3001, 4, 200}, {70, 300, 128, 20},
                           {1, 4097, 64, 1},   {130, 65, 5, 40},  {2100, 60, 4, 3}};
  for (size_t i = 0; i < std::size(longer); ++i) {
    add_search(longer[i], excludes[i % 3], false);
    add_search(longer[i], excludes[(i + 2) % 3], true);
  }
  cases.push_back(top_k_case(20, 400, 128, 5, Exclude::own, unit_rows(), " unit"));
  cases.push_back(top_k_case(4, 50, 8, 50, Exclude::absent, below(1), " all equal"));
}

void add_contrast_bench_cases(OpCases& cases, bool cifar, int64_t batch) {
  const int64_t keys = cifar ? 4096 : 65536;
  cases.push_back(info_nce_case({batch, 128, keys, 1, 0.2f, {1}}));
  cases.push_back(info_nce_case({batch, 128, keys, 2, 0.2f, {0.5, 0.5}}));
  cases.push_back(cross_entropy_case({batch, cifar ? 10 : 1000}, normal(), "", true));
  cases.push_back(top_k_case(256, cifar ? 50000 : 131072, 128, 20, Exclude::own, unit_rows(), ""));
}

}  // namespace csml::test
