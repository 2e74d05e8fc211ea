#include "kernels/cuda/versions.h"

#include "kernels/check.h"

namespace csml::cuda {

std::string version_text(size_t number) { return cat("{}.{}.{}", number / 10000, number / 100 % 100, number % 100); }

std::string check_version(const char* name, size_t found, size_t built) {
  if (found / 10000 != built / 10000)
    throw Error(
        cat("{} {} is not the {}.x that csml was built with; install that, or name its folder in "
            "CSML_CUDA_LIBRARIES",
            name, version_text(found), built / 10000));
  if (found / 100 >= built / 100) return "";
  return cat("{} {} is older than {}, which csml was built with: it may lack what csml asks of it", name,
             version_text(found), version_text(built));
}

}  // namespace csml::cuda
