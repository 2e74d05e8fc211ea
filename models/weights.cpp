#include "models/weights.h"

#include <algorithm>
#include <cstring>
#include <regex>
#include <unordered_map>
#include <unordered_set>

#include "engine/text.h"

namespace csml {

namespace {

Shape torch_shape(const Params::Entry& e) {
  const Shape& s = e.shape;
  return e.is_conv ? Shape{s[0], s[3], s[1], s[2]} : s;
}

NamedArray named_array(const std::string& name, const Shape& shape, const float* values) {
  NamedArray array{name, DType::f32, shape, std::vector<std::byte>(static_cast<size_t>(shape.size()) * sizeof(float))};
  std::memcpy(array.data.data(), values, array.data.size());
  return array;
}

}  // namespace

std::string detectron2_name(const std::string& name) {
  static const std::regex pattern(R"((?:layer(\d)\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+))");
  std::smatch m;
  if (!std::regex_match(name, m, pattern) || m[6] == "num_batches_tracked") return "";
  const std::string block = m[1].matched ? cat("res{}.{}.", std::stoi(m[1]) + 1, m[2].str()) : "stem.";
  const bool norm = m[3].matched ? m[3] == "bn" : m[5] == "1";
  const std::string layer = m[3].matched ? "conv" + m[4].str() : "shortcut";
  return cat("{}{}{}.{}", block, layer, norm ? ".norm" : "", m[6].str());
}

std::string torchvision_name(const std::string& name) {
  static const std::regex pattern(R"((?:stem|res(\d)\.(\d+))\.(?:conv(\d)|(shortcut))(\.norm)?\.(\w+))");
  std::smatch m;
  if (!std::regex_match(name, m, pattern) || m[6] == "num_batches_tracked") return "";
  const std::string block = m[1].matched ? cat("layer{}.{}.", std::stoi(m[1]) - 1, m[2].str()) : "";
  const std::string layer =
      m[4].matched ? cat("downsample.{}", m[5].matched ? 1 : 0) : cat("{}{}", m[5].matched ? "bn" : "conv", m[3].str());
  return cat("{}{}.{}", block, layer, m[6].str());
}

std::vector<float> to_kcrs(const float* krsc, const Shape& s) {
  std::vector<float> out(static_cast<size_t>(s.size()));
  size_t i = 0;
  for (int64_t k = 0; k < s[0]; ++k)
    for (int64_t c = 0; c < s[3]; ++c)
      for (int64_t r = 0; r < s[1]; ++r)
        for (int64_t q = 0; q < s[2]; ++q) out[i++] = krsc[((k * s[1] + r) * s[2] + q) * s[3] + c];
  return out;
}

std::vector<float> to_krsc(const float* kcrs, const Shape& s) {
  std::vector<float> out(static_cast<size_t>(s.size()));
  size_t i = 0;
  for (int64_t k = 0; k < s[0]; ++k)
    for (int64_t c = 0; c < s[3]; ++c)
      for (int64_t r = 0; r < s[1]; ++r)
        for (int64_t q = 0; q < s[2]; ++q) out[static_cast<size_t>(((k * s[1] + r) * s[2] + q) * s[3] + c)] = kcrs[i++];
  return out;
}

std::vector<NamedArray> to_host(const Params& params, const std::string& prefix, std::span<const float> parameters,
                                std::span<const float> statistics) {
  std::vector<NamedArray> arrays;
  const auto take = [&](const std::vector<Params::Entry>& entries, std::span<const float> values) {
    for (const Params::Entry& e : entries) {
      const float* first = values.data() + e.offset;
      const std::vector<float> permuted = e.is_conv ? to_kcrs(first, e.shape) : std::vector<float>();
      arrays.push_back(named_array(prefix + e.name, torch_shape(e), e.is_conv ? permuted.data() : first));
    }
  };
  take(params.entries(), parameters);
  if (!statistics.empty()) take(params.buffer_entries(), statistics);
  return arrays;
}

std::vector<NamedArray> to_host(const Params& params, const std::string& prefix, const Tensor& flat) {
  if (flat) return to_host(params, prefix, flat.host<float>(), {});
  return to_host(params, prefix, params.master().host<float>(), params.buffers().host<float>());
}

std::vector<std::string> from_host(const Params& params, const std::vector<NamedArray>& arrays,
                                   const std::string& prefix, const Tensor& flat) {
  std::unordered_map<std::string, const NamedArray*> by_name;
  for (const NamedArray& a : arrays) by_name[a.name] = &a;
  std::unordered_set<std::string> used;
  auto collect = [&](const std::vector<Params::Entry>& entries, const Tensor& tensor) {
    std::vector<float> values = tensor.host<float>();
    for (const Params::Entry& e : entries) {
      const std::string name = prefix + e.name;
      const auto found = by_name.find(name);
      if (found == by_name.end()) throw Error(cat("weights lack {}: they are of another architecture", quote(name)));
      const NamedArray& a = *found->second;
      if (!(a.shape == torch_shape(e)))
        throw Error(cat("{} has shape {} where this network has {}: the weights are of another architecture",
                        quote(name), a.shape.text(), torch_shape(e).text()));
      CHECK(a.dtype == DType::f32, "'{}' is {}; weights must be f32", name, name_of(a.dtype));
      std::vector<float> given(static_cast<size_t>(e.shape.size()));
      std::memcpy(given.data(), a.data.data(), a.data.size());
      if (e.is_conv) given = to_krsc(given.data(), e.shape);
      std::copy(given.begin(), given.end(), values.begin() + e.offset);
      used.insert(name);
    }
    return values;
  };
  // Everything is checked before anything is replaced.
  const Tensor target = flat ? flat : params.master();
  const std::vector<float> parameters = collect(params.entries(), target);
  if (!flat) params.buffers().upload(collect(params.buffer_entries(), params.buffers()));
  target.upload(parameters);
  if (!flat) params.update_compute();
  std::vector<std::string> unused;
  for (const NamedArray& a : arrays)
    if (a.name.rfind(prefix, 0) == 0 && !used.contains(a.name)) unused.push_back(a.name);
  return unused;
}

}  // namespace csml
