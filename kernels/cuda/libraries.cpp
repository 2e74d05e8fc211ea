#include "kernels/cuda/libraries.h"

#include <dlfcn.h>

#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/versions.h"

namespace csml::cuda {

namespace {

/// A shared library that stays loaded until the process ends: plans and handles may outlive any owner.
class Library {
 public:
  Library(const char* file, const char* what) : file_(file) {
    std::string why;
    for (const std::string& folder : folders()) {
      const std::string path = folder.empty() ? file : folder + "/" + file;
      library_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library_) return;
      if (folder.empty()) why = ::dlerror();
    }
    throw Error(
        cat("{} ({}) cannot be loaded: {}; install it, or name its folder in CSML_CUDA_LIBRARIES", what, file, why));
  }

  template <class Function>
  void bind(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(::dlsym(library_, name));
    CHECK(function, "{} has no function {}; install the version that csml was built with", file_, name);
  }

 private:
  static std::vector<std::string> folders() {
    std::vector<std::string> all;
    const auto add = [&](const char* list) {
      std::istringstream text(list);
      for (std::string folder; std::getline(text, folder, ':');)
        if (!folder.empty()) all.push_back(folder);
    };
    if (const char* set = std::getenv("CSML_CUDA_LIBRARIES")) add(set);
    all.emplace_back();  // the dynamic linker's search
    add(CSML_CUDA_LIBRARY_FOLDERS);
    return all;
  }

  const char* file_;
  void* library_ = nullptr;
};

Cudnn load_cudnn() {
  const std::string file = cat("libcudnn.so.{}", CUDNN_MAJOR);
  const Library library(file.c_str(), "cuDNN");
  Cudnn f{};
  library.bind(f.get_version, "cudnnGetVersion");
  library.bind(f.get_error_string, "cudnnGetErrorString");
  library.bind(f.get_last_error_string, "cudnnGetLastErrorString");
  library.bind(f.create, "cudnnCreate");
  library.bind(f.destroy, "cudnnDestroy");
  library.bind(f.set_stream, "cudnnSetStream");
  library.bind(f.create_descriptor, "cudnnBackendCreateDescriptor");
  library.bind(f.destroy_descriptor, "cudnnBackendDestroyDescriptor");
  library.bind(f.finalize, "cudnnBackendFinalize");
  library.bind(f.set_attribute, "cudnnBackendSetAttribute");
  library.bind(f.get_attribute, "cudnnBackendGetAttribute");
  library.bind(f.execute, "cudnnBackendExecute");
  check_version("cuDNN", f.get_version(), CUDNN_VERSION);
  return f;
}

CublasLt load_cublas_lt() {
  const std::string file = cat("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
  const Library library(file.c_str(), "cuBLASLt");
  CublasLt f{};
  library.bind(f.get_version, "cublasLtGetVersion");
  library.bind(f.get_status_string, "cublasLtGetStatusString");
  library.bind(f.create, "cublasLtCreate");
  library.bind(f.destroy, "cublasLtDestroy");
  library.bind(f.desc_create, "cublasLtMatmulDescCreate");
  library.bind(f.desc_destroy, "cublasLtMatmulDescDestroy");
  library.bind(f.desc_set, "cublasLtMatmulDescSetAttribute");
  library.bind(f.layout_create, "cublasLtMatrixLayoutCreate");
  library.bind(f.layout_destroy, "cublasLtMatrixLayoutDestroy");
  library.bind(f.preference_create, "cublasLtMatmulPreferenceCreate");
  library.bind(f.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  library.bind(f.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  library.bind(f.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  library.bind(f.matmul, "cublasLtMatmul");
  check_version("cuBLASLt", f.get_version(), CUBLAS_VERSION);
  return f;
}

}  // namespace

const Cudnn& cudnn() {
  static const Cudnn functions = load_cudnn();
  return functions;
}

const CublasLt& cublas_lt() {
  static const CublasLt functions = load_cublas_lt();
  return functions;
}

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw Error(cat("{} failed: {} ({}), {} [{}:{}]", call, cudaGetErrorName(status), static_cast<int>(status),
                  cudaGetErrorString(status), file, line));
}

void check(cudnnStatus_t status, const char* call, const char* file, int line) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char detail[256] = "";
  cudnn().get_last_error_string(detail, sizeof detail);
  throw Error(cat("{} failed: {} ({}){}{} [{}:{}]", call, cudnn().get_error_string(status), static_cast<int>(status),
                  detail[0] ? ", " : "", detail, file, line));
}

void check(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(cat("{} failed: {} ({}) [{}:{}]", call, cublas_lt().get_status_string(status), static_cast<int>(status),
                  file, line));
}

}  // namespace csml::cuda
