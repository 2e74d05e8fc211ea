// A stand-in for NCCL over the stand-in for the CUDA runtime: this process and one partner, whose every element is 1.
// A collective runs when its stream reaches it, so one that is ordered behind too little reads what is not written yet.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>

namespace {

void queue(cudaStream_t stream, std::function<void()> work) {
  cudaLaunchHostFunc(
      stream,
      [](void* data) {
        const std::unique_ptr<std::function<void()>> call(static_cast<std::function<void()>*>(data));
        (*call)();
      },
      new std::function<void()>(std::move(work)));
}

template <class T>
void reduce(const void* from, void* to, size_t count, ncclRedOp_t op) {
  for (size_t i = 0; i < count; ++i) {
    const T mine = static_cast<const T*>(from)[i], other = 1;
    static_cast<T*>(to)[i] = op == ncclSum   ? mine + other
                             : op == ncclAvg ? (mine + other) / 2
                             : op == ncclMax ? std::max(mine, other)
                                             : std::min(mine, other);
  }
}

}  // namespace

struct ncclComm {};

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 7, sizeof *id);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId, int rank, ncclConfig_t*) {
  if (size != 2 || rank != 0) return ncclInvalidArgument;
  *comm = new ncclComm;
  return ncclInProgress;  // as a communicator that does not block answers
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* status) {
  *status = ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclInProgress; }
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return ncclCommAbort(comm); }
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t,
                           cudaStream_t stream) {
  if (type != ncclFloat32 && type != ncclInt32) return ncclInvalidArgument;
  queue(stream, [=] {
    if (type == ncclFloat32)
      reduce<float>(from, to, count, op);
    else
      reduce<int32_t>(from, to, count, op);
  });
  return ncclInProgress;
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t,
                           cudaStream_t stream) {
  if (type != ncclInt8) return ncclInvalidArgument;
  queue(stream, [=] {
    std::memmove(to, from, count);
    std::memset(static_cast<char*>(to) + count, 1, count);
  });
  return ncclSuccess;
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t,
                           cudaStream_t stream) {
  if (type != ncclInt8) return ncclInvalidArgument;
  queue(stream, [=] { root == 0 ? std::memmove(to, from, count) : std::memset(to, 1, count); });
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) { return "an error of the stand-in"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }

}  // extern "C"
