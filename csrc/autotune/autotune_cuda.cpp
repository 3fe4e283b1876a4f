#include "autotune/autotune_cuda.h"

#include <torch/csrc/stable/ops.h>

#include <cstdio>
#include <map>
#include <memory>
#include <mutex>

#include "base/tensors.h"

namespace aoq {
namespace {

// The model of the device with this index, and how many multiprocessors it has: two that share both are the same.
std::string device_text(int index, const char* op) {
  static std::mutex mutex;
  static std::map<int, std::string> texts;
  const std::lock_guard<std::mutex> guard(mutex);
  std::string& text = texts[index];
  if (text.empty()) {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, index), op);
    text = join(properties.name, ", ", properties.multiProcessorCount, " multiprocessors");
  }
  return text;
}

// Plans and kernels by number mean what they do for this op's kernels here, which AOQ_SM and the build decide.
uint32_t kernels_hash(const ConfigOf& wanted, int capability) {
  uint32_t hash = static_cast<uint32_t>(wanted.configs);
  for (const std::string& name : cuda_kernel_names(wanted.kernels, capability))
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash;
}

bool capturing(CudaStream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess) cudaGetLastError();  // the default stream while another one is captured
  return error != cudaSuccess || status != cudaStreamCaptureStatusNone;
}

// This thread may wait for its own events while another one captures a graph.
class Uncaptured {
 public:
  Uncaptured() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Uncaptured() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Uncaptured(const Uncaptured&) = delete;
  Uncaptured& operator=(const Uncaptured&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Times calls, each after all of L2 was written: weights come from memory, as they do in a model. The writing also
// keeps the device busy while the call is queued.
class Timer {
 public:
  Timer(const Tensor& x, const char* op, CudaStream stream) : op_(op), stream_(stream) {
    const int bytes = 2 * attribute(cudaDevAttrL2CacheSize, x.get_device_index(), op);
    flush_ = new_tensor(x, {bytes}, ScalarType::Byte);
    bytes_ = static_cast<size_t>(bytes);
    for (cudaEvent_t& event : events_) check_cuda(cudaEventCreate(&event), op);
  }
  ~Timer() {
    for (cudaEvent_t event : events_)
      if (event) cudaEventDestroy(event);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  template <class Call>
  double nanoseconds(Call call) {
    check_cuda(cudaMemsetAsync(flush_.mutable_data_ptr(), 0, bytes_, stream_), op_);
    check_cuda(cudaEventRecord(events_[0], stream_), op_);
    call();
    check_cuda(cudaEventRecord(events_[1], stream_), op_);
    check_cuda(cudaEventSynchronize(events_[1]), op_);
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, events_[0], events_[1]), op_);
    return 1e6 * static_cast<double>(milliseconds);
  }

 private:
  const char* op_;
  CudaStream stream_;
  Tensor flush_;
  size_t bytes_ = 0;
  cudaEvent_t events_[2] = {};
};

}  // namespace

int tuned_config(const ConfigOf& wanted, const PackedMm& mm, const Tensor& x, int capability, CudaStream stream,
                 const std::function<bool(int)>& fits, const std::function<void(int)>& run) {
  char kernels[16];
  std::snprintf(kernels, sizeof(kernels), "%08x", kernels_hash(wanted, capability));
  const std::string text = device_text(x.get_device_index(), wanted.op) + ", kernels " + kernels;
  const TunedProblem problem{tuned_key(wanted.kernels, mm, wanted.codes, text), fits, wanted.configs};
  std::unique_ptr<Uncaptured> uncaptured;
  std::unique_ptr<Timer> timer;
  auto nanoseconds = [&](int config) {
    if (!timer) {
      uncaptured = std::make_unique<Uncaptured>();
      timer = std::make_unique<Timer>(x, wanted.op, stream);
    }
    return timer->nanoseconds([&] { run(config); });
  };
  return tuned_config(problem, [&] { return !capturing(stream); }, nanoseconds);
}

}  // namespace aoq
