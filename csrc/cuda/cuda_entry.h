// What CUDA entries (<op>_cuda.cpp) share: the device and the stream of a call. Workspace is a tensor, so that it comes
// from the framework's allocator; nothing waits for the device, so that every op can be captured in a graph.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>

#include "base/check.h"
#include "cuda/cuda.h"
#include "cuda/sm.h"
#include "mm/cuda/packed_mm_plan.h"

// Weak: a torch without CUDA lacks it, where tests load this library to see what it registers.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace aoq {

inline void check_cuda(cudaError_t error, const char* op) {
  if (error != cudaSuccess) throw std::runtime_error(join("aoq::", op, ": CUDA: ", cudaGetErrorString(error)));
}

// Makes the device of `tensor` current as long as it lives: `const OnDevice device(x, op);`, then
// `select(kKernels, device.capability)(args, device.stream); device.check_launch();`
class OnDevice {
 public:
  OnDevice(const Tensor& tensor, const char* op) : op_(op), guard_(tensor.get_device_index()) {
    const int index = tensor.get_device_index();
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), op);
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), op);
    capability = 10 * major + minor;
    void* current = nullptr;
    if (!aoti_torch_get_current_cuda_stream) throw std::runtime_error(join("aoq::", op, ": torch has no CUDA"));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<CudaStream>(current);
  }

  void check_launch() const { check_cuda(cudaGetLastError(), op_); }

  int capability = 0;  // 10 * major + minor
  CudaStream stream = nullptr;

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
};

inline int attribute(cudaDeviceAttr which, int device, const char* op) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), op);
  return value;
}

// What cost models ask of the device of x; read once, since the driver asks the device itself for its clocks.
inline Device device_of(const Tensor& x, int capability, const char* op) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const int index = x.get_device_index();
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(index); found != known.end()) return found->second;
  auto value = [&](cudaDeviceAttr which) { return attribute(which, index, op); };
  // kHz and bits; twice a clock.
  const double rate = 2e-6 * value(cudaDevAttrMemoryClockRate) * value(cudaDevAttrGlobalMemoryBusWidth) / 8;
  // Multiply-adds of mma.sync, which reaches some 60% of Hopper's tensor cores.
  const double a_clock = capability == 86 || capability == 89 ? 512 : capability == 90 ? 1280 : 1024;
  const double clock = 1e-6 * value(cudaDevAttrClockRate);
  const Device device{value(cudaDevAttrMultiProcessorCount), rate > 0 ? rate : 1000,
                      a_clock * (clock > 0 ? clock : 1.5)};
  return known.emplace(index, device).first->second;
}

// For what kernels read several bytes at a time: a view may begin anywhere in its memory.
inline void check_aligned(const void* data, size_t bytes, const char* op, const char* operand) {
  check_value(reinterpret_cast<uintptr_t>(data) % bytes == 0, op, operand, "expected memory aligned to ", bytes,
              " bytes, got a view that is not");
}

// What grids and 32-bit counters of kernels with packed weights can take, scales' words of a few tiles of rows
// included.
inline void check_cuda_sizes(const PackedMm& args, const char* op) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;
  check_value(args.m < kMost, op, "x", "expected fewer than 2^31 - 1024 rows, got ", args.m);
  check_value(args.n < kMost, op, "n", "expected less than 2^31 - 1024, got ", args.n);
  check_value(args.k < int64_t{1} << 30, op, "x", "expected k below 2^30, got ", args.k);
  const int64_t groups = ceil_div(args.k, args.group);
  check_value(groups <= 1 << 26, op, "group_size", "expected at most 2^26 groups, got ", groups);
}

}  // namespace aoq
