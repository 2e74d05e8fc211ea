#include "apps/exchange.h"

#include <iterator>

#include "models/weights.h"

namespace csml {

void Exchange::put(const std::string& name, const Tensor& tensor) {
  NamedArray array{name, tensor.dtype(), tensor.shape(), std::vector<std::byte>(tensor.bytes())};
  tensor.download_bytes(array.data.data());
  arrays_.push_back(std::move(array));
}

void Exchange::put(const std::string& prefix, const Params& params, const Tensor& flat) {
  std::vector<NamedArray> arrays = to_host(params, prefix, flat);
  std::move(arrays.begin(), arrays.end(), std::back_inserter(arrays_));
}

void Exchange::write(const std::filesystem::path& path) const {
  std::vector<HostArray> arrays;
  for (const NamedArray& a : arrays_) arrays.push_back({a.name, a.dtype, a.shape, a.data.data()});
  write_safetensors(path, arrays, notes_);
}

}  // namespace csml
