#include "int4_mm/int4_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "core/cuda_entry.h"
#include "core/int4_cuda.h"
#include "core/packed_mm_entry.h"

namespace aoq {
namespace {

constexpr const char* kOp = "int4_mm";

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4MmCudaKernel> kSkinny[] = {
#include "int4_mm/kernels_cuda.inc"
};
constexpr CudaKernel<Int4MmWideKernel> kWide[] = {
#include "int4_mm/kernels_wide_cuda.inc"
};
constexpr CudaKernel<Int4MmWgmmaKernel> kWgmma[] = {
#include "int4_mm/kernels_wgmma_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op(kOp, kSkinny, kWide, kWgmma);

// Runs a kernel with `floats` of workspace.
template <class Call, class Kernel>
void run(Call call, Kernel kernel, int64_t floats, const Tensor& x, const OnDevice& device) {
  Tensor workspace;
  if (floats) {
    workspace = torch::stable::new_empty(x, {floats}, ScalarType::Float);
    call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  }
  kernel(call, device.stream);
  device.check_launch();
}

// config: -1, then skinny's, then wide's, then wgmma's.
constexpr int kFirstWgmma = int4_skinny::kConfigs + int4_wide::kConfigs;
constexpr int kConfigs = kFirstWgmma + int4_wgmma::kConfigs;

void multiply(const PackedMm& args, const Tensor& x, int config, const OnDevice& device) {
  const bool f32 = args.x_dtype == Dtype::f32, zero = args.zero_point;
  const int planes = f32 ? kPlanes : 1;
  const Shape shape{planes * args.m, args.n, args.k, args.group};
  const Device model = device_of(x, device.capability, kOp);
  const bool copies = needs_copy(args);
  const bool aligned =
      (reinterpret_cast<uintptr_t>(args.scale) | reinterpret_cast<uintptr_t>(args.zero_point)) % 16 == 0;
  const bool wgmma = allowed(Sm::sm90a, device.capability) && aligned && int4_wgmma::takes(shape);
  if (wgmma && (config < 0 ? int4_wgmma::pays(shape, model, zero + copies) : config >= kFirstWgmma)) {
    const int scale_bytes = args.scale_dtype == Dtype::f32 ? 4 : 2;
    const auto plan = config < 0 ? int4_wgmma::choose(shape, model, zero, scale_bytes)
                                 : int4_wgmma::plan_of(config - kFirstWgmma, shape, zero, scale_bytes);
    const auto workspace = int4_wgmma::workspace_of({args.m, args.n, args.k, args.group}, planes, copies, zero);
    run(Int4MmWgmma{args, plan, nullptr}, select(kWgmma, device.capability), workspace.end, x, device);
    return;
  }
  check_value(config < kFirstWgmma, kOp, "config", "expected below ", kFirstWgmma,
              " for this device and operands, got ", config);
  if (config < 0 ? int4_wide::pays(shape, model, zero + copies) : config >= int4_skinny::kConfigs) {
    check_value(int4_wide::takes(shape), kOp, "config", "expected below ", int4_skinny::kConfigs, " for groups of ",
                args.group, ", got ", config);
    const auto plan = config < 0 ? int4_wide::choose(shape, model) : int4_wide::plan_of(config - int4_skinny::kConfigs);
    const auto workspace = int4_wide::workspace_of(plan, {args.m, args.n, args.k, args.group}, planes, copies, zero);
    run(Int4MmWide{args, plan, nullptr}, select(kWide, device.capability), workspace.end, x, device);
  } else {
    const auto plan = config < 0 ? int4_skinny::choose(shape, model) : int4_skinny::plan_of(config, shape);
    const bool cluster = allowed(Sm::sm90a, device.capability);
    const int64_t floats = int4_skinny::workspace_floats(plan, cluster, f32, args.m, args.n, args.k);
    run(Int4MmCuda{args, plan, nullptr}, select(kSkinny, device.capability), floats, x, device);
  }
}

Tensor int4_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
                    const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  check_value(x.is_cuda(), kOp, "x", "expected the device of packed, ", device_name(packed), ", got ", device_name(x));
  if (x.dim() > 0) check_group(group_size, x.size(x.dim() - 1), kOp);
  check_value(config >= -1 && config < kConfigs, kOp, "config", "expected -1 to ", kConfigs - 1, ", got ", config);
  const OnDevice device(x, kOp);
  auto run = [&](const PackedMm& args) {
    check_value(args.k < int64_t{1} << 30, kOp, "x", "expected k below 2^30, got ", args.k);
    check_value(reinterpret_cast<uintptr_t>(args.packed) % 16 == 0, kOp, "packed",
                "expected memory aligned to 16 bytes");
    multiply(args, x, static_cast<int>(config), device);
  };
  return packed_mm(
      kOp, {x, packed, scale, zero_point, {}, bias}, n, group_size, int4_cuda::kTileK, [&] { return run; },
      int4_cuda::kTileBytes);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm_cuda)); }
