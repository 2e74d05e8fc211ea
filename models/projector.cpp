#include "models/projector.h"

namespace csml {

Projector::Projector(Params& params, const ProjectorOptions& o, const std::string& name) {
  if (o.mlp) {
    first_ = std::make_unique<Linear>(params, name + ".0", o.in, o.hidden);
    last_ = std::make_unique<Linear>(params, name + ".2", o.hidden, o.out);
  } else {
    last_ = std::make_unique<Linear>(params, name, o.in, o.out);
  }
}

Var Projector::operator()(const Var& x) const { return (*last_)(first_ ? relu((*first_)(x)) : x); }

}  // namespace csml
