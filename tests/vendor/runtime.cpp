#include "tests/vendor/runtime.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/check.h"

namespace {

struct Piece {
  std::function<bool()> ready;  // empty: at once
  std::function<void()> run;
};

}  // namespace

struct CUstream_st {
  std::deque<Piece> pieces;
};
struct CUevent_st {
  std::shared_ptr<bool> happened;  // of the last record; null: never recorded
};

namespace {

std::set<CUstream_st*> streams;
std::mt19937_64 draw;
bool released = true;
size_t uploaded = 0;

/// One piece of some stream; false: none can go on.
bool advance_one() {
  std::vector<CUstream_st*> able;
  for (CUstream_st* s : streams)
    if (!s->pieces.empty() && (!s->pieces.front().ready || s->pieces.front().ready())) able.push_back(s);
  if (able.empty()) return false;
  CUstream_st* stream = able[draw() % able.size()];
  const Piece piece = std::move(stream->pieces.front());
  stream->pieces.pop_front();
  if (piece.run) piece.run();
  return true;
}

cudaError_t wait_until(const std::function<bool()>& done) {
  while (!done())
    if (!advance_one()) return cudaErrorLaunchTimeout;
  return cudaSuccess;
}

}  // namespace

namespace csml::test::runtime {

void seed(uint64_t value) { draw.seed(value); }
void kernel(cudaStream_t stream, std::function<void()> work) { stream->pieces.push_back({{}, std::move(work)}); }
void endless_kernel(cudaStream_t stream) {
  released = false;
  stream->pieces.push_back({[] { return released; }, {}});
}
void release() { released = true; }
void advance() {
  while (advance_one()) {}
}
size_t bytes_uploaded() { return uploaded; }

}  // namespace csml::test::runtime

namespace csml::cuda {

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status != cudaSuccess) throw Error(cat("{}:{}: {} failed ({})", file, line, call, static_cast<int>(status)));
}

}  // namespace csml::cuda

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  streams.insert(*stream = new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return wait_until([=] { return stream->pieces.empty(); });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto happened = std::make_shared<bool>(false);
  event->happened = happened;
  stream->pieces.push_back({{}, [=] { *happened = true; }});
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const auto happened = event->happened) stream->pieces.push_back({[=] { return *happened; }, {}});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto happened = event->happened;
  return wait_until([=] { return !happened || *happened; });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  for (uint64_t n = draw() % 4; n > 0; --n) advance_one();
  return !event->happened || *event->happened ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  stream->pieces.push_back({{}, [=] {
                              std::memcpy(to, from, bytes);
                              if (kind == cudaMemcpyHostToDevice) uploaded += bytes;
                            }});
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void* data) {
  stream->pieces.push_back({{}, [=] { call(data); }});
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** data, size_t bytes) { return cudaMallocHost(data, bytes); }
cudaError_t cudaFree(void* data) { return cudaFreeHost(data); }
const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorLaunchTimeout ? "a kernel that does not end" : "an error of the stand-in";
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  *data = std::malloc(bytes);
  return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

}  // extern "C"
