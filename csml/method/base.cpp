#include "csml/method/base.h"

#include <algorithm>

namespace csml {

namespace {

Backend::Form form_of(const std::string& name) {
  if (name == "csml") return Backend::Form::csml;
  if (name == "out") return Backend::Form::out;
  if (name == "in") return Backend::Form::in;
  if (name == "mil") return Backend::Form::mil;
  throw UsageError(cat("method.form = '{}' is unknown; use csml, out, in or mil", name));
}

}  // namespace

const std::vector<Base>& bases() {
  static const std::vector<Base> all{moco_base(), simclr_base(), byol_base(), mocov3_base()};
  return all;
}

const Base& find_base(const std::string& name) {
  for (const Base& base : bases())
    if (base.name == name) return base;
  std::string names = "csml";
  for (const Base& base : bases()) names += (&base == &bases().back() ? " or " : ", ") + base.name;
  throw UsageError(cat("method '{}' is unknown; use {}", name, names));
}

const Base& base_of(const MethodConfig& config) { return find_base(config.name == "csml" ? config.base : config.name); }

Var contrastive_loss(const LossInput& in) {
  const MethodConfig& m = in.config.method;
  MultiPositiveOptions options{.temperature = static_cast<float>(m.temperature),
                               .form = form_of(m.form),
                               .own = in.own,
                               .ids = in.ids,
                               .close = {},
                               .threshold = static_cast<float>(m.queue_filter)};
  if (m.queue_filter < 1) {
    const NoGrad no_grad;
    for (const Var& positive : in.positives) options.close.push_back(linear(positive, in.bank.detach(), {}).value());
  }
  return multi_positive(row_dots(in.anchor, in.positives), linear(in.anchor, in.bank, {}), in.weights, options,
                        in.similarity);
}

}  // namespace csml
