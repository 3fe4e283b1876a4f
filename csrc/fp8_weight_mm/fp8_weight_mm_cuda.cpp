#include "fp8_weight_mm/fp8_weight_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "core/autotune_cuda.h"
#include "core/packed_mm_entry.h"
#include "core/quantize_rows_entry.h"

namespace aoq {
namespace {

constexpr const char* kOp = "fp8_weight_mm";

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4MmCudaKernel> kKernels[] = {
#include "fp8_weight_mm/kernels_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op(kOp, kKernels);

Shape shape_of(const PackedMm& args) {
  return {(args.x_dtype == Dtype::f32 ? kPlanes : 1) * args.m, args.n, args.k, args.k};
}

void multiply(const PackedMm& args, int config, const Tensor& x, const OnDevice& device) {
  const bool f32 = args.x_dtype == Dtype::f32;
  const Shape shape = shape_of(args);
  Int4MmCuda call{args,
                  config < 0 ? int4_skinny::choose(shape, device_of(x, device.capability, kOp))
                             : int4_skinny::plan_of(config, shape),
                  nullptr};
  Tensor workspace;
  const int64_t floats = int4_skinny::workspace_floats(call.plan, false, f32, args.m, args.n, args.k);
  if (floats) {
    workspace = torch::stable::new_empty(x, {floats}, ScalarType::Float);
    call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  }
  select(kKernels, device.capability)(call, device.stream);
  device.check_launch();
}

Tensor fp8_weight_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias,
                          int64_t n, std::optional<ScalarType> w_dtype, int64_t config) {
  check_value(x.is_cuda(), kOp, "x", "expected the device of packed, ", device_name(packed), ", got ", device_name(x));
  const bool e5m2 = codes_of(w_dtype.value_or(ScalarType::Float8_e4m3fn), false, kOp, "w_dtype") == Codes::e5m2;
  const OnDevice device(x, kOp);
  auto run = [&](PackedMm args) {
    check_value(args.k < int64_t{1} << 30, kOp, "x", "expected k below 2^30, got ", args.k);
    check_aligned(args.packed, 16, kOp, "packed");
    args.w_e5m2 = e5m2;
    run_config(
        {kOp, config, int4_skinny::kConfigs, e5m2 ? "e5m2" : "e4m3"}, args, x, device,
        [&](int one) { return int4_skinny::differs(one, shape_of(args)); },
        [&](int one) { multiply(args, one, x, device); });
  };
  return packed_mm(kOp, {x, packed, scale, {}, {}, bias}, n, 0, 0, [&] { return run; });
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("fp8_weight_mm", TORCH_BOX(&aoq::fp8_weight_mm_cuda)); }
