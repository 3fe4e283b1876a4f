#include "int4_mm/int4_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "core/cuda_entry.h"
#include "core/int4_cuda.h"
#include "core/packed_mm_entry.h"

namespace aoq {
namespace {

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4MmCudaKernel> kKernels[] = {
#include "int4_mm/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op("int4_mm", kKernels);

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "int4_mm");
  return value;
}

int4_skinny::Device device_of(const Tensor& x) {
  const int index = x.get_device_index();
  // kHz and bits; twice a clock.
  const double rate =
      2e-6 * attribute(cudaDevAttrMemoryClockRate, index) * attribute(cudaDevAttrGlobalMemoryBusWidth, index) / 8;
  return {attribute(cudaDevAttrMultiProcessorCount, index), rate > 0 ? rate : 1000};
}

Tensor int4_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
                    const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  constexpr const char* op = "int4_mm";
  check_value(x.is_cuda(), op, "x", "expected the device of packed, ", device_name(packed), ", got ", device_name(x));
  if (x.dim() > 0) check_group(group_size, x.size(x.dim() - 1), op);
  check_value(config >= -1 && config < int4_skinny::kConfigs, op, "config", "expected -1 to ",
              int4_skinny::kConfigs - 1, ", got ", config);
  const OnDevice device(x, op);
  auto run = [&](const PackedMm& args) {
    check_value(args.k < int64_t{1} << 30, op, "x", "expected k below 2^30, got ", args.k);
    check_value(reinterpret_cast<uintptr_t>(args.packed) % 16 == 0, op, "packed",
                "expected memory aligned to 16 bytes");
    const bool cluster = allowed(Sm::sm90a, device.capability), f32 = args.x_dtype == Dtype::f32;
    const int4_skinny::Shape shape{(f32 ? int4_skinny::kPlanes : 1) * args.m, n, args.k, args.group};
    Int4MmCuda call{
        args,
        config < 0 ? int4_skinny::choose(shape, device_of(x)) : int4_skinny::plan_of(static_cast<int>(config), shape),
        nullptr};
    const int64_t floats = int4_skinny::workspace_floats(call.plan, cluster, f32, args.m, n, args.k);
    Tensor workspace;
    if (floats) {
      workspace = torch::stable::new_empty(x, {floats}, ScalarType::Float);
      call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    }
    select(kKernels, device.capability)(call, device.stream);
    device.check_launch();
  };
  return packed_mm(
      op, {x, packed, scale, zero_point, {}, bias}, n, group_size, int4_cuda::kTileK, [&] { return run; },
      int4_cuda::kTileBytes);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm_cuda)); }
