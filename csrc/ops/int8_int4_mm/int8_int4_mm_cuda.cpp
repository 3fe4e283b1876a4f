#include "ops/int8_int4_mm/int8_int4_mm_cuda.h"

#include <torch/csrc/stable/library.h>

#include "autotune/autotune_cuda.h"
#include "formats/int4_cuda.h"
#include "mm/packed_mm_entry.h"
#include "ops/int8_quantize/int8_quantize.h"
#include "rows/quantize_x.h"

namespace aoq {
namespace {

constexpr const char* kOp = "int8_int4_mm";

#define AOQ_KERNEL(sm, function) {Sm::sm, #function, function},
constexpr CudaKernel<Int4MmCudaKernel> kSkinny[] = {
#include "ops/int8_int4_mm/kernels_cuda.inc"
};
constexpr CudaKernel<Int4MmWideKernel> kWide[] = {
#include "ops/int8_int4_mm/kernels_wide_cuda.inc"
};
constexpr CudaKernel<Int4MmWgmmaKernel> kWgmma[] = {
#include "ops/int8_int4_mm/kernels_wgmma_cuda.inc"
};
#undef AOQ_KERNEL
const bool kRegistered = register_cuda_op(kOp, kSkinny, kWide, kWgmma);

// Quantizes args' x, then multiplies.
void multiply(PackedMm args, const int4_config::Choice& choice, const Tensor& x, const OnDevice& device) {
  using int4_config::Kernels;
  const Shape shape{args.m, args.n, args.k, args.group, 1};
  const bool cluster = allowed(Sm::sm90a, device.capability), zero = args.zero_point;
  const int64_t floats = choice.kernels == Kernels::wgmma ? int4_wgmma::workspace_of(shape, 1, false, zero).end
                         : choice.kernels == Kernels::wide
                             ? int4_wide::workspace_of(choice.wide, shape, 1, false, zero).end
                             : int4_skinny::workspace_floats(choice.skinny, cluster, false, args.m, args.n, args.k);

  // One allocation: codes, which are whole sixteens, scales and zero points of rows, sums.
  const int64_t pitch = ceil_div(args.k, 16) * 16, codes = args.m * pitch;
  const int64_t rows = ceil_div(2 * args.m, 4) * 4;
  Tensor workspace = new_tensor(x, {codes / 4 + rows + floats}, ScalarType::Float);
  auto* const memory = static_cast<float*>(workspace.mutable_data_ptr());

  float* const x_scale = memory + codes / 4;
  QuantizeRows quantize =
      quantize_x(args, {Codes::int8}, reinterpret_cast<uint8_t*>(memory), x_scale, x_scale + args.m);
  quantize.permute = true;
  int8_quantize_sm80(quantize, device.stream);
  device.check_launch();

  args.x = quantize.qdata;
  args.x_stride = pitch;
  args.x_scale = x_scale;
  args.x_scale_stride = 1;
  args.x_zero = args.x_scale + args.m;
  float* const sums = x_scale + rows;
  switch (choice.kernels) {
    case Kernels::wgmma: select(kWgmma, device.capability)({args, choice.wgmma, sums}, device.stream); break;
    case Kernels::wide: select(kWide, device.capability)({args, choice.wide, sums}, device.stream); break;
    case Kernels::skinny: select(kSkinny, device.capability)({args, choice.skinny, sums}, device.stream); break;
  }
  device.check_launch();
}

Tensor int8_int4_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale,
                         const std::optional<Tensor>& zero_point, const std::optional<Tensor>& w_sum,
                         const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  check_tensor(x, kOp, "x");
  check_value(x.is_cuda(), kOp, "x", "expected the device of packed, ", device_name(packed), ", got ", device_name(x));
  const OnDevice device(x, kOp);
  auto run = [&](const PackedMm& args) {
    check_cuda_sizes(args, kOp);
    check_aligned(args.packed, 16, kOp, "packed");
    check_aligned(args.scale, 4, kOp, "scale");
    check_aligned(args.zero_point, 4, kOp, "zero_point");
    const int4_config::Problem problem = problem_of(args, {args.m, args.n, args.k, args.group, 1},
                                                    args.zero_point != nullptr, allowed(Sm::sm90a, device.capability));
    const Device model = device_of(x, device.capability, kOp);
    run_config(
        {kOp, config, int4_config::configs(problem), ""}, args, x, device,
        [&](int one) { return int4_config::differs(problem, one); },
        [&](int one) { multiply(args, int4_config::choose(problem, model, one), x, device); });
  };
  return packed_mm(
      kOp, {x, packed, scale, zero_point, w_sum, bias}, n, group_size, int4_cuda::kTileK, [&] { return run; },
      int4_cuda::kTileBytes);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int8_int4_mm", TORCH_BOX(&aoq::int8_int4_mm_cuda)); }
