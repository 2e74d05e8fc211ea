#include "csml/training/run_state.h"

#include "csml/training/saved_model.h"
#include "engine/json.h"
#include "engine/log.h"
#include "models/weights.h"

namespace csml {

namespace {

void restore_tensor(const SafetensorsFile& file, const std::string& name, const Tensor& t) {
  const ArrayInfo& info = file.info(name);
  if (info.dtype != t.dtype() || !(info.shape == t.shape()))
    throw Error(cat("{}: '{}' is {} {} where this run has {} {}: the checkpoint is of another configuration",
                    file.path().string(), name, name_of(info.dtype), info.shape.text(), name_of(t.dtype()),
                    t.shape().text()));
  std::vector<std::byte> bytes(t.bytes());
  file.read(name, bytes.data(), bytes.size());
  t.upload_bytes(bytes.data());
}

/// Copies a tensor into memory that is allocated once.
template <class T>
void copy_down(const Tensor& t, std::vector<T>& to) {
  to.resize(t.bytes() / sizeof(T));
  t.download_bytes(to.data());
}

}  // namespace

std::shared_ptr<NeighborTable> neighbor_table_of(const Checkpoint& checkpoint, int64_t images) {
  const SafetensorsFile state = checkpoint.state();
  if (!state.contains("neighbors")) return nullptr;
  const ArrayInfo& info = state.info("neighbors");
  if (info.dtype != DType::i32 || info.shape.rank() != 2 || info.shape[0] != images) return nullptr;
  auto table = std::make_shared<NeighborTable>();
  table->k = static_cast<int>(info.shape[1]);
  table->index.resize(static_cast<size_t>(info.shape.size()));
  state.read("neighbors", table->index.data(), info.bytes);
  return table;
}

void RunState::restore(const Checkpoint& checkpoint) {
  const auto entry = checkpoint.user.find("data_fingerprint");
  if (entry != checkpoint.user.end() && !entry->is_string())
    throw Error(
        cat("{}: data_fingerprint in its manifest is no text; the checkpoint is damaged", checkpoint.folder.string()));
  const std::string had = entry == checkpoint.user.end() ? "" : entry->get<std::string>();
  if (had != fingerprint)
    throw Error(
        cat("{}: written while training on other data (fingerprint {}, now {}); give the same --data or a new --out",
            checkpoint.folder.string(), had, fingerprint));
  const SafetensorsFile model = checkpoint.model(), state = checkpoint.state();
  std::vector<NamedArray> arrays;
  for (const std::string& name : model.names()) arrays.push_back(model.read(name));
  from_host(method.query_encoder().params(), arrays, "encoder_q.");
  from_host(method.key_encoder().params(), arrays, "encoder_k.");
  for (const auto& [name, tensor] : method.state()) restore_tensor(state, name, tensor);
  if (state.contains("neighbors")) {
    neighbors = neighbor_table_of(checkpoint, data.size());
    if (!neighbors)
      throw Error(cat("{}: its neighbour table has shape {} for {} images", state.path().string(),
                      state.info("neighbors").shape.text(), data.size()));
  }
  const nlohmann::json& user = checkpoint.user;
  try {
    const auto count = [&](const char* key) { return user.contains(key) ? whole_number<int64_t>(user[key]) : 0; };
    at = {checkpoint.step, checkpoint.epoch, count("batch")};
    skipped = count("skipped_steps");
    purity = user.value("purity", -1.0);
    churn = user.value("churn", -1.0);
    evaluation_due = user.value("evaluation_due", false);
  } catch (const nlohmann::json::exception& e) {
    throw Error(cat("{}: an entry of its manifest is of the wrong type: {}", checkpoint.folder.string(), e.what()));
  }
  saved = at.step;
}

void RunState::share(Device& device, Comm& comm) {
  if (comm.size() == 1) return;
  for (Encoder* encoder : {&method.query_encoder(), &method.key_encoder()}) {
    comm.broadcast(encoder->params().master(), 0);
    comm.broadcast(encoder->params().buffers(), 0);
    encoder->params().update_compute();
  }
  for (const auto& [name, tensor] : method.state()) comm.broadcast(tensor, 0);
  const nlohmann::json mine{{"step", at.step},
                            {"epoch", at.epoch},
                            {"batch", at.batch},
                            {"purity", purity},
                            {"churn", churn},
                            {"saved", saved},
                            {"skipped", skipped},
                            {"evaluation_due", evaluation_due},
                            {"k", neighbors ? neighbors->k : 0}};
  const nlohmann::json root = nlohmann::json::parse(broadcast_text(comm, device, mine.dump()));
  at = {root["step"].get<int64_t>(), root["epoch"].get<int64_t>(), root["batch"].get<int64_t>()};
  purity = root["purity"].get<double>();
  churn = root["churn"].get<double>();
  saved = root["saved"].get<int64_t>();
  skipped = root["skipped"].get<int64_t>();
  evaluation_due = root["evaluation_due"].get<bool>();
  const int k = root["k"].get<int>();
  if (k == 0) return;
  const Tensor index(device, {data.size(), k}, DType::i32);
  if (neighbors) index.upload(neighbors->index);
  comm.broadcast(index, 0);
  auto table = std::make_shared<NeighborTable>();
  *table = {.index = index.host<int32_t>(), .k = k};
  neighbors = std::move(table);
}

void RunState::start_from(const std::filesystem::path& weights) {
  const SafetensorsFile file = SafetensorsFile::open(weights);
  int channels = 0;
  bool has_head = false;
  const ModelConfig there = recognise_model(file, "", &channels, &has_head);
  const int64_t features = method.query_encoder().feature_dim();
  has_head = has_head && config.model.head_mlp && there.dim == config.model.dim &&
             there.head_hidden == (config.model.head_hidden > 0 ? config.model.head_hidden : features) &&
             there.head_bn == config.model.head_bn;
  load_torchvision(method.query_encoder(), file, has_head);
  load_torchvision(method.key_encoder(), file, has_head);
  log_info(cat("both encoders start from {}{}", weights.string(), has_head ? "" : " (backbone; the heads start anew)"));
}

void StateCopy::take(const RunState& s, const nlohmann::json& user) {
  at_ = s.at;
  parts_.resize(2);
  parts_[0].params = &s.method.query_encoder().params();
  parts_[0].prefix = "encoder_q.";
  parts_[1].params = &s.method.key_encoder().params();
  parts_[1].prefix = "encoder_k.";
  for (Part& part : parts_) {
    copy_down(part.params->master(), part.parameters);
    copy_down(part.params->buffers(), part.statistics);
  }
  const auto tensors = s.method.state();
  state_.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    state_[i].name = name;
    state_[i].dtype = tensor.dtype();
    state_[i].shape = tensor.shape();
    copy_down(tensor, state_[i].data);
  }
  neighbors_ = s.neighbors;
  user_ = {{"config", to_json(s.config)}, {"in_channels", s.data.channels()},
           {"batch", s.at.batch},         {"data_fingerprint", s.fingerprint},
           {"purity", s.purity},          {"churn", s.churn}};
  user_["skipped_steps"] = s.skipped;
  user_["evaluation_due"] = s.evaluation_due;
  user_.update(user);
  const int every = s.config.train.milestone_every_epochs;
  milestone_ = at_.batch == 0 && at_.epoch > 0 && every > 0 && at_.epoch % every == 0;
}

StateCopy::Content StateCopy::content() const {
  Content c;
  for (const Part& part : parts_)
    for (NamedArray& a : to_host(*part.params, part.prefix, part.parameters, part.statistics))
      c.encoders.push_back(std::move(a));
  const auto view = [](const NamedArray& a) { return HostArray{a.name, a.dtype, a.shape, a.data.data()}; };
  for (const NamedArray& a : c.encoders) c.checkpoint.model.push_back(view(a));
  for (const NamedArray& a : state_) c.checkpoint.state.push_back(view(a));
  if (neighbors_) {
    const auto rows = static_cast<int64_t>(neighbors_->index.size()) / neighbors_->k;
    c.checkpoint.state.push_back({"neighbors", DType::i32, {rows, neighbors_->k}, neighbors_->index.data()});
  }
  c.checkpoint.step = at_.step;
  c.checkpoint.epoch = at_.epoch;
  c.checkpoint.model_metadata = {{"format", "pt"}};
  c.checkpoint.user = user_;
  c.checkpoint.milestone = milestone_;
  return c;
}

}  // namespace csml
