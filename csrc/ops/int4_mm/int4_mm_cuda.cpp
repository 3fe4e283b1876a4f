#include "ops/int4_mm/int4_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "autotune/autotune_cuda.h"
#include "formats/int4_cuda.h"
#include "mm/packed_mm_entry.h"

namespace aoq {
namespace {

constexpr const char* kOp = "int4_mm";

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4MmCudaKernel> kSkinny[] = {
#include "ops/int4_mm/kernels_cuda.inc"
};
constexpr CudaKernel<Int4MmWideKernel> kWide[] = {
#include "ops/int4_mm/kernels_wide_cuda.inc"
};
constexpr CudaKernel<Int4MmWgmmaKernel> kWgmma[] = {
#include "ops/int4_mm/kernels_wgmma_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op(kOp, kSkinny, kWide, kWgmma);

// Runs a kernel with `floats` of workspace.
template <class Call, class Kernel>
void run(Call call, Kernel kernel, int64_t floats, const Tensor& x, const OnDevice& device) {
  Tensor workspace;
  if (floats) {
    workspace = new_tensor(x, {floats}, ScalarType::Float);
    call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  }
  kernel(call, device.stream);
  device.check_launch();
}

void multiply(const PackedMm& args, const int4_config::Choice& choice, const Tensor& x, const OnDevice& device) {
  const bool f32 = args.x_dtype == Dtype::f32, zero = args.zero_point, copies = needs_copy(args);
  const int planes = f32 ? kPlanes : 1;
  const Shape shape{args.m, args.n, args.k, args.group};
  switch (choice.kernels) {
    case int4_config::Kernels::wgmma:
      return run(Int4MmWgmma{args, choice.wgmma, nullptr}, select(kWgmma, device.capability),
                 int4_wgmma::workspace_of(shape, planes, copies, zero).end, x, device);
    case int4_config::Kernels::wide:
      return run(Int4MmWide{args, choice.wide, nullptr}, select(kWide, device.capability),
                 int4_wide::workspace_of(choice.wide, shape, planes, copies, zero).end, x, device);
    case int4_config::Kernels::skinny:
      return run(Int4MmCuda{args, choice.skinny, nullptr}, select(kSkinny, device.capability),
                 int4_skinny::workspace_floats(choice.skinny, allowed(Sm::sm90a, device.capability), f32, args.m,
                                               args.n, args.k),
                 x, device);
  }
}

Tensor int4_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
                    const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  check_tensor(x, kOp, "x");
  check_value(x.is_cuda(), kOp, "x", "expected the device of packed, ", device_name(packed), ", got ", device_name(x));
  const OnDevice device(x, kOp);
  auto run = [&](const PackedMm& args) {
    check_cuda_sizes(args, kOp);
    check_aligned(args.packed, 16, kOp, "packed");
    check_aligned(args.scale, 4, kOp, "scale");
    check_aligned(args.zero_point, 4, kOp, "zero_point");
    const bool zero = args.zero_point;
    const Shape shape{(args.x_dtype == Dtype::f32 ? kPlanes : 1) * args.m, args.n, args.k, args.group};
    const int4_config::Problem problem =
        problem_of(args, shape, zero + needs_copy(args), allowed(Sm::sm90a, device.capability));
    const Device model = device_of(x, device.capability, kOp);
    run_config(
        {kOp, config, int4_config::configs(problem), ""}, args, x, device,
        [&](int one) { return int4_config::differs(problem, one); },
        [&](int one) { multiply(args, int4_config::choose(problem, model, one), x, device); });
  };
  return packed_mm(
      kOp, {x, packed, scale, zero_point, {}, bias}, n, group_size, int4_cuda::kTileK, [&] { return run; },
      int4_cuda::kTileBytes);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm_cuda)); }
