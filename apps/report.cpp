// csml report: a run folder into one self-contained report.html.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "apps/command.h"
#include "apps/config.h"
#include "apps/html.h"
#include "apps/kept_result.h"
#include "apps/report_pictures.h"
#include "apps/report_style.h"
#include "apps/run_metrics.h"
#include "apps/verdict.h"
#include "csml/method/base.h"
#include "engine/json.h"
#include "engine/log.h"
#include "version.h"

namespace csml {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

constexpr size_t kMostTextBytes = size_t{1} << 30;

struct Options {
  CommonOptions common;
  std::string run, out, data, device = "auto", encoder = "q";
  int samples = 6, images = 2000;
  bool pictures = true;
};

bool has_queue(const std::optional<Config>& config) { return config && base_of(config->method).queue; }

std::string charts_html(const Metrics& m, const std::optional<Config>& config) {
  const std::string x = m.x_label();
  std::string html;
  Chart loss{.title = "Loss",
             .note = cat("Means over the log interval{}",
                         has_queue(config) ? "; rises at first, while the queue still holds random rows" : ""),
             .x_label = x,
             .series = {}};
  loss.series.push_back(series(m, m.step, "loss", "loss"));
  for (const char* term : {"q", "p", "m"}) {
    Series s = series(m, m.step, term, cat("loss_terms.{}", term));
    if (has_values(s)) loss.series.push_back(std::move(s));
  }
  if (loss.series.size() == 2) loss.series.pop_back();  // one term is the loss
  if (const Series chance = series(m, m.step, "", "chance"); has_values(chance)) {
    const bool of_queue =
        has_queue(config) && std::abs(last(chance) - std::log1p(static_cast<double>(config->method.queue))) < 0.01;
    loss.level = {last(chance), cat("chance{} = {:.2f}", of_queue ? ", log(K + 1)" : "", last(chance))};
  }
  html += chart_html(loss);
  html += chart_html({.title = "Online k-NN",
                      .note = "Top-1 accuracy of frozen features, percent; first point: the untrained encoder",
                      .x_label = x,
                      .series = {series(m, m.eval, "top-1", "top1")}});
  std::vector<Series> similarities{series(m, m.step, "positive", "positive_similarity")};
  const bool negatives = !config || base_of(config->method).negatives != Base::Negatives::none;
  if (negatives) similarities.push_back(series(m, m.step, "negative", "negative_similarity"));
  html +=
      chart_html({.title = "Similarities",
                  .note = cat("Mean cosine of a query to its positive key{}", negatives ? " and to its negatives" : ""),
                  .x_label = x,
                  .series = similarities});
  html += chart_html({.title = "Feature spread",
                      .note = "1: embeddings spread over the whole sphere; 0: all in one point (collapse)",
                      .x_label = x,
                      .series = {series(m, m.step, "spread", "feature_spread")},
                      .from_zero = true});
  std::vector<Series> quality;
  for (Series& s :
       std::vector<Series>{series(m, m.epoch, "purity", "purity", 100), series(m, m.epoch, "churn", "churn", 100)})
    if (has_values(s)) quality.push_back(std::move(s));
  if (!quality.empty())
    html += chart_html({.title = "Neighbours",
                        .note = "Purity: of the same label. Churn: new in the last search. Percent",
                        .x_label = x,
                        .series = quality,
                        .from_zero = true});
  html += chart_html({.title = "Learning rate",
                      .note = "",
                      .x_label = x,
                      .series = {series(m, m.step, "rate", "lr")},
                      .from_zero = true});
  html += chart_html({.title = "Throughput",
                      .note = "Images per second of training",
                      .x_label = x,
                      .series = {series(m, m.step, "images/s", "images_per_second")},
                      .from_zero = true});
  html += chart_html({.title = "Waiting for data",
                      .note = "Share of the time without a ready batch, percent",
                      .x_label = x,
                      .series = {series(m, m.step, "wait", "data_wait", 100)},
                      .level = {{10.0, "fine below 10"}},
                      .from_zero = true});
  return html;
}

std::string tile(const std::string& value, const std::string& what) {
  return cat("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape_html(value), escape_html(what));
}

std::string tiles_html(const Metrics& m, const std::optional<Config>& config) {
  std::string html;
  const Series top1 = series(m, m.eval, "", "top1"), loss = series(m, m.step, "", "loss"),
               chance = series(m, m.step, "", "chance"), purity = series(m, m.epoch, "", "purity", 100),
               rate = series(m, m.step, "", "images_per_second");
  if (has_values(top1)) {
    const bool untrained = m.eval.size() > 1 && number(m.eval.front(), "step") == 0;
    html += tile(cat("{:.1f} %", last(top1)),
                 untrained ? cat("k-NN top-1; untrained {:.1f} %", top1.points.front().second) : "k-NN top-1");
  }
  if (has_values(loss))
    html += tile(cat("{:.3f}", last(loss)), has_values(chance) ? cat("loss; chance {:.2f}", last(chance)) : "loss");
  if (has_values(purity)) html += tile(cat("{:.1f} %", last(purity)), "neighbour purity");
  if (!m.step.empty())
    html += tile(cat("{:.0f}{}", m.x(m.step.back()),
                     config && m.steps_per_epoch > 0 ? cat(" / {}", config->train.epochs) : std::string()),
                 m.steps_per_epoch > 0 ? cat("epochs of {:.0f} steps", m.steps_per_epoch) : "steps");
  if (has_values(rate)) html += tile(cat("{:.0f}", median(rate)), "images per second, median");
  double seconds = 0;
  for (const json& line : m.epoch) seconds += std::max(0.0, number(line, "seconds"));
  if (seconds > 0) html += tile(duration_text(seconds), cat("training time, {}", seconds < 3600 ? "min:s" : "h:min:s"));
  return html.empty() ? "" : "<div class=\"tiles\">" + html + "</div>\n";
}

/// The first sentence of the page, and how it comes about.
std::string verdict_html(const Verdict& v) {
  const char* kind = v.health == Verdict::Health::ok ? "ok" : v.health == Verdict::Health::warn ? "warn" : "fail";
  std::string rows;
  for (const VerdictState& known : verdict_states())
    rows += cat("<tr{}><td>{}</td><td>{}</td><td>{}</td></tr>\n", v.state == known.state ? " class=\"this\"" : "",
                escape_html(known.sentence), escape_html(known.means), escape_html(known.helps));
  return cat(
      "<p class=\"verdict {}\">{}</p>\n<details class=\"rules\"><summary>How this is judged</summary>"
      "<p>The first of these that applies; thresholds: docs/reading-a-run.md.</p><div class=\"scroll\"><table>"
      "<thead><tr><th>verdict</th><th>what it means</th><th>what helps</th></tr></thead><tbody>{}</tbody></table></div>"
      "</details>\n",
      kind, escape_html(v.text()), rows);
}

/// What else a reader should know, in plain words.
std::string notes_html(const Metrics& m, const std::vector<json>& bad_images, const std::optional<Checkpoint>& newest,
                       const std::optional<Config>& config) {
  std::string html;
  const auto note = [&](bool warn, const std::string& text) {
    html += cat("<li class=\"{}\">{}</li>\n", warn ? "warn" : "", escape_html(text));
  };
  if (!newest) note(true, "No good checkpoint: no pictures of neighbours, and nothing to evaluate.");
  if (newest && config && newest->epoch < config->train.epochs)
    note(false,
         cat("Not finished: {} of {} epochs are done. The same command goes on.", newest->epoch, config->train.epochs));
  for (const json& line : m.event)
    if (text_of(line, "event") == "non_finite") {
      note(true, "At least one step had a loss or gradient that was not finite; such steps changed nothing.");
      break;
    }
  if (!bad_images.empty())
    note(true, cat("{} unreadable images were replaced; they are listed below.", bad_images.size()));
  return html.empty() ? "" : "<ul class=\"notes\">" + html + "</ul>\n";
}

/// XXH3-128 of the weights of every checkpoint that the run still has, its best one too.
std::set<std::string> contents_of_checkpoints(const fs::path& run) {
  std::set<std::string> contents;
  const auto add = [&](const fs::path& checkpoint) {
    std::error_code error;
    const fs::path weights = checkpoint / "model.safetensors";
    if (fs::is_regular_file(weights, error)) contents.insert(digest_of(weights).hex);
  };
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(run / "checkpoints", error)) add(entry.path());
  add(run / "best");
  return contents;
}

/// Evaluations: the online ones, and every RUN/*.json that an evaluation command printed.
std::string results_html(const fs::path& run, const Metrics& m) {
  std::vector<json> lines;
  if (!m.eval.empty()) {
    if (m.eval.size() > 1) lines.push_back(m.eval.front());
    lines.push_back(m.eval.back());
  }
  std::error_code error;
  std::set<fs::path> files;
  for (const fs::path& folder : {run, run / kResultsFolder})
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
      if (entry.path().extension() == ".json" && entry.path().filename() != "environment.json")
        files.insert(entry.path());
  const std::set<std::string> own = contents_of_checkpoints(run);
  std::string left_out;
  for (const fs::path& file : files) {
    json result = parse_json(read_text_file(file, kMostTextBytes));
    if (!result.is_object() || !result.contains("top1")) continue;
    if (const std::string content = text_of(result, "checkpoint_xxh3_128");
        !content.empty() && !own.contains(content)) {
      left_out +=
          cat("<p class=\"quiet\">{} is left out: it judges {}, whose weights are none of this run's "
              "checkpoints.</p>",
              escape_html(file.filename().string()), escape_html(text_of(result, "checkpoint")));
      continue;
    }
    result["file"] = file.filename().string();
    lines.push_back(std::move(result));
  }
  if (lines.empty() && left_out.empty()) return "";
  std::string rows;
  for (const json& line : lines) {
    const bool online = text_of(line, "kind") == "eval";
    std::vector<json> each{line};  // several k or shots, both stages of self-training
    for (const char* list : {"results", "stages"})
      if (line.contains(list) && line[list].is_array()) each = line[list].get<std::vector<json>>();
    for (const json& result : each) {
      std::string task = text_of(line, "task");
      if (const std::string k = text_of(result, "k"); !k.empty()) task += cat(", k = {}", k);
      if (const std::string stage = text_of(result, "stage"); !stage.empty()) task += ", " + stage;
      if (const double map = number(result, "map"); std::isfinite(map)) task += cat(", mAP {:.2f} %", map);
      const auto percent = [&](const char* key) {
        const double value = number(result, key);
        return std::isfinite(value) ? cat("{:.2f}", value) : std::string("–");
      };
      const std::string protocol = text_of(result, "protocol");
      rows +=
          cat("<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td><td>{}</td>"
              "<td class=\"number\">{}</td><td class=\"quiet\">{}</td></tr>\n",
              escape_html(task), percent("top1"), percent("top5"), escape_html(text_of(line, "features")),
              escape_html(text_of(line, "encoder")),
              escape_html(cat("{} / {}", text_of(line, "n_train"), text_of(line, "n_test"))),
              escape_html(cat("{}{}", online ? cat("step {}; ", text_of(line, "step")) : text_of(line, "file") + "; ",
                              protocol.empty() ? text_of(line, "protocol") : protocol)));
    }
  }
  return cat(
      "<section><h2>Results</h2><div class=\"scroll\"><table><thead><tr><th>task</th><th class=\"number\">top-1 %</th>"
      "<th class=\"number\">top-5 %</th><th>features</th><th>encoder</th><th class=\"number\">train / test</th>"
      "<th>protocol</th></tr></thead><tbody>{}</tbody></table></div>{}</section>\n",
      rows, left_out);
}

std::string config_html(const fs::path& run) {
  std::error_code error;
  if (!fs::exists(run / "config.toml", error)) return "";
  const std::string text = read_text_file(run / "config.toml", kMostTextBytes);
  std::string rows;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with('[')) rows += cat("<tr class=\"section\"><th colspan=\"3\">{}</th></tr>\n", escape_html(line));
    const size_t equals = line.find(" = ");
    if (equals == std::string::npos || line.starts_with('#')) continue;
    const size_t comment = line.rfind("  # ");
    std::string value = line.substr(equals + 3, comment == std::string::npos ? comment : comment - equals - 3);
    value.erase(value.find_last_not_of(' ') + 1);
    rows += cat("<tr><td>{}</td><td class=\"value\">{}</td><td class=\"quiet\">{}</td></tr>\n",
                escape_html(line.substr(0, equals)), escape_html(value),
                escape_html(comment == std::string::npos ? "" : line.substr(comment + 4)));
  }
  return cat(
      "<details><summary>Resolved configuration</summary><div class=\"scroll\"><table><thead><tr><th>key</th>"
      "<th>value</th><th>origin</th></tr></thead><tbody>{}</tbody></table></div></details>\n",
      rows);
}

std::string table_html(const std::string& title, const std::vector<json>& lines, const std::vector<std::string>& keys,
                       size_t most) {
  if (lines.empty()) return "";
  std::string head, rows;
  for (const std::string& key : keys) head += cat("<th>{}</th>", escape_html(key));
  for (size_t i = 0; i < std::min(lines.size(), most); ++i) {
    rows += "<tr>";
    for (const std::string& key : keys) rows += cat("<td>{}</td>", escape_html(text_of(lines[i], key)));
    rows += "</tr>\n";
  }
  return cat(
      "<details><summary>{} ({})</summary><div class=\"scroll\"><table><thead><tr>{}</tr></thead><tbody>{}</tbody>"
      "</table></div></details>\n",
      escape_html(title), lines.size(), head, rows);
}

std::string run_html(const fs::path& run, const Metrics& m, const std::vector<json>& bad_images) {
  std::string html = "<section><h2>The run</h2>\n";
  std::error_code error;
  if (fs::exists(run / "command.txt", error))
    html += cat("<pre>{}</pre>\n", escape_html(read_text_file(run / "command.txt", kMostTextBytes)));
  html += config_html(run);
  if (fs::exists(run / "environment.json", error)) {
    const json environment = parse_json(read_text_file(run / "environment.json", kMostTextBytes));
    std::string rows;
    if (environment.is_object())
      for (const auto& [key, value] : environment.items())
        rows += cat("<tr><td>{}</td><td class=\"value\">{}</td></tr>\n", escape_html(key),
                    escape_html(value.is_string() ? value.get<std::string>() : json_line(value)));
    html +=
        cat("<details><summary>Environment</summary><div class=\"scroll\"><table><tbody>{}</tbody></table></div>"
            "</details>\n",
            rows);
  }
  html += table_html("Events", m.event, {"step", "event", "text", "purity", "churn"}, 200);
  html += table_html("Unreadable images", bad_images, {"path", "reason"}, 100);
  return html + "</section>\n";
}

/// The pictures; what cannot be had is said instead of failing the report.
std::string pictures_html(const Options& o, const std::optional<Config>& config,
                          const std::optional<Checkpoint>& newest) {
  if (!o.pictures || !config || !newest) return "";
  PictureOptions pictures{.data = o.data.empty() ? config->data.train : o.data,
                          .samples = o.samples,
                          .images = o.images,
                          .encoder = o.encoder};
  const auto device = Device::open(o.device);
  std::string html;
  const auto section = [&](const std::string& title, const auto& make) {
    html += cat("<section><h2>{}</h2>\n", title);
    try {
      html += make();
    } catch (const Error& e) {
      log_warn(cat("report: {}: {}", title, e.what()));
      html += cat("<p>Not available: {}</p>\n", escape_html(e.what()));
    }
    html += "</section>\n";
  };
  section("Augmented views", [&] { return views_html(*device, *config, *newest, pictures); });
  section("Nearest neighbours", [&] { return neighbors_html(*device, *newest, pictures); });
  return html;
}

int run(const Options& o) {
  start(o.common);
  const fs::path folder = o.run;
  if (!fs::is_directory(folder)) throw Error(cat("{}: no such run folder", o.run));
  const Metrics metrics = read_metrics(folder / "metrics.jsonl");
  const std::vector<json> bad_images = read_json_lines(folder / "bad_images.jsonl");
  const std::optional<Checkpoint> newest = newest_checkpoint(folder, log_warn);
  if (metrics.step.empty() && metrics.eval.empty() && !newest)
    throw Error(cat("{} holds no run: neither metrics.jsonl nor a checkpoint", o.run));
  std::optional<Config> config;
  if (newest && newest->user.contains("config")) config = config_from_json(newest->user["config"]);

  const std::string name = fs::weakly_canonical(folder).filename().string();
  std::string about;
  if (config) {
    const ModelConfig& model = config->model;
    about = cat("{} · ResNet-{}, {} stem, width {} · batch {}{}{} · seed {}",
                config->method.name == "csml" ? cat("csml over {}", config->method.base) : config->method.name,
                model.depth, model.stem, model.width, config->train.batch_size,
                has_queue(config) ? cat(" · queue {}", config->method.queue) : std::string(),
                base_of(config->method).negatives != Base::Negatives::none
                    ? cat(" · temperature {}", config->method.temperature)
                    : std::string(),
                config->train.seed);
  }
  std::string html =
      cat("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{} – csml</title>"
          "<style>{}</style></head>\n<body><main>\n<header><h1>{}</h1><p>{}</p>",
          escape_html(name), kReportStyle, escape_html(name), escape_html(about));
  if (config) html += cat("<p>{}</p>", escape_html(config->data.train));
  const Verdict verdict = judge(metrics);
  html += "</header>\n" + verdict_html(verdict) + tiles_html(metrics, config) +
          notes_html(metrics, bad_images, newest, config);
  html += results_html(folder, metrics);
  if (const std::string charts = charts_html(metrics, config); !charts.empty())
    html +=
        "<section><h2>Training</h2><p>What each curve means and what trouble looks like: docs/reading-a-run.md.</p>"
        "<div class=\"charts\">" +
        charts + "</div></section>\n";
  html += pictures_html(o, config, newest) + run_html(folder, metrics, bad_images);
  html += cat("<footer>csml {} ({}){}</footer>\n</main></body></html>\n", kVersion, kCommit,
              newest ? escape_html(cat(" · {}", newest->folder.filename().string())) : "");

  const fs::path out = o.out.empty() ? folder / "report.html" : fs::path(o.out);
  const FileDigest digest = write_text_file(out, html);
  answer(o.common,
         {{"task", "report"},
          {"out", out.string()},
          {"bytes", digest.bytes},
          {"verdict", verdict.state},
          {"reason", verdict.reason},
          {"advice", verdict.advice},
          {"steps", metrics.step.empty() ? 0.0 : number(metrics.step.back(), "step")},
          {"checkpoint", newest ? json(newest->folder.string()) : json()}},
         cat("{}\n{}\n", verdict.text(), out.string()));
  return 0;
}

}  // namespace

Command report_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("run,--run", o->run, "Run folder")->type_name("DIR")->required();
  app.add_option("--out", o->out, "File to write [DIR/report.html]")->type_name("FILE");
  app.add_option("--data", o->data, "SPEC of the images to show, where the run's own are gone [the run's]")
      ->type_name("SPEC");
  app.add_option("--samples", o->samples, "Rows of pictures")
      ->check(CLI::Range(1, 100))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--images", o->images, "Images among which neighbours are searched, class-balanced")
      ->check(CLI::Range(2, 1000000))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--encoder", o->encoder, "q (trained) | k (its moving average)")
      ->check(CLI::IsMember({"q", "k"}))
      ->type_name("WHICH")
      ->capture_default_str();
  app.add_flag("!--no-pictures", o->pictures, "Curves and tables only");
  app.add_option("--device", o->device, "auto | cpu | cuda | cuda:N")->type_name("NAME")->capture_default_str();
  add_common_options(app, o->common);
  app.footer(
      "Example: csml report runs/demo\n"
      "Evaluations of the run's checkpoints (csml knn, linear, svm, finetune) are kept in runs/demo/eval and join the "
      "table.");
  return [o] { return run(*o); };
}

}  // namespace csml
