// autotune/autotune_cuda.cpp on CUDA's runtime as test_autotune.py has it: functions that note that they were called.
#include "autotune/autotune_cuda.h"

#include <cstdio>
#include <cstring>
#include <string>

using namespace aoq;

namespace {

std::string calls;  // since the last `run`
int last_run;
cudaStreamCaptureStatus capture;
cudaError_t capture_error;

void note(const std::string& call) { calls += (calls.empty() ? "" : " ") + call; }

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "A GPU");
  properties->multiProcessorCount = 132;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrL2CacheSize ? 4096 : 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capture;
  return capture_error;
}
cudaError_t cudaGetLastError() {
  note("forget");
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  note(*mode == cudaStreamCaptureModeRelaxed ? "relax" : "restore");
  std::swap(current, *mode);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  note("create");
  *event = reinterpret_cast<cudaEvent_t>(1);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
  note("destroy");
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void*, int, size_t bytes, cudaStream_t) {
  note("flush:" + std::to_string(bytes));
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  note("record");
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  note("wait");
  return cudaSuccess;
}
// Config 1 takes half of the others' time.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = last_run == 1 ? 0.01f : 0.02f;
  return cudaSuccess;
}

// The config of a problem with three; `out` gets the calls. sm: as AOQ_SM.
int tuned(int64_t m, int capturing, int error, const char* sm, char* out, size_t size) {
  register_cuda_op("an_op", {{Sm::sm90a, "an_op_sm90a"}, {Sm::sm80, "an_op_sm80"}});
  set_sm(sm);
  capture = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  capture_error = error ? cudaErrorStreamCaptureImplicit : cudaSuccess;
  calls.clear();
  const int64_t sizes[] = {1}, strides[] = {1};
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(1, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle))
    return -2;
  const Tensor x(handle);
  PackedMm mm{};
  mm.m = m;
  mm.n = mm.k = mm.group = 64;
  auto run = [](int config) {
    note("run:" + std::to_string(config));
    last_run = config;
  };
  const int config = tuned_config({"mm", "an_op", -1, 3, ""}, mm, x, 90, nullptr, [](int) { return true; }, run);
  std::snprintf(out, size, "%s", calls.c_str());
  return config;
}

void mode(const char* value) { set_autotune(value); }

}  // extern "C"
