#include "kernels/cuda/facts.h"

#include "kernels/check.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/versions.h"

namespace csml::cuda {

namespace {

/// 13000 -> 13.0: CUDA's own way.
std::string cuda_version_text(int number) { return cat("{}.{}", number / 1000, number % 1000 / 10); }

template <class Version>
CudaFacts::Library library(const char* name, const Version& version, size_t built) {
  try {
    const size_t found = version();
    return {.version = version_text(found), .warning = check_version(name, found, built), .error = {}};
  } catch (const Error& e) { return {.version = {}, .warning = {}, .error = e.what()}; }
}

CudaFacts::Library cudnn_facts() {
  return library(
      "cuDNN", [] { return cudnn().get_version(); }, CUDNN_VERSION);
}
CudaFacts::Library cublas_lt_facts() {
  return library(
      "cuBLASLt", [] { return cublas_lt().get_version(); }, CUBLAS_VERSION);
}

std::string card_text(int card) {
  cudaDeviceProp p{};
  if (cudaGetDeviceProperties(&p, card) != cudaSuccess) return cat("card {} does not answer", card);
  return cat("{}, capability {}.{}, {:.0f} GiB", p.name, p.major, p.minor,
             static_cast<double>(p.totalGlobalMem) / (1 << 30));
}

/// Whatever their age.
int visible_cards() {
  int cards = 0;
  const bool answers = cudaGetDeviceCount(&cards) == cudaSuccess;
  cudaGetLastError();  // clears it
  return answers ? cards : 0;
}

}  // namespace

int usable_cards() { return CudaBackend::why_not(0).empty() ? visible_cards() : 0; }

std::vector<std::string> library_warnings() {
  std::vector<std::string> lines = {cudnn_facts().warning, cublas_lt_facts().warning};
  std::erase(lines, "");
  return lines;
}

CudaFacts facts() {
  CudaFacts f;
  f.built = true;
  f.why_not = CudaBackend::why_not(0);
  f.runtime = cuda_version_text(CUDART_VERSION);
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) f.driver = cuda_version_text(driver);
  const int cards = visible_cards();
  for (int i = 0; i < cards; ++i) {
    f.cards.push_back(card_text(i));
    for (int j = i + 1; j < cards; ++j) {
      int reaches = 0;
      ++f.pairs;
      if (cudaDeviceCanAccessPeer(&reaches, i, j) == cudaSuccess) f.peers += reaches;
    }
  }
  cudaGetLastError();
  f.cudnn = cudnn_facts();
  f.cublas_lt = cublas_lt_facts();
  return f;
}

}  // namespace csml::cuda
