// What the CUDA entries of int8_mm and fp8_mm have in common: quantizing x, choosing a kernel, launching both.
#pragma once
#include <array>

#include "mm/cuda/dense_mm.h"
#include "mm/cuda/dense_mm_plan.h"
#include "mm/cuda/mm_call.h"

namespace aoq {

// The kernels that run here, as `config` counts and `_C.cuda_kernels` lists them.
template <size_t N>
struct DenseKernels {
  std::array<dense::Tile, N> tiles;
  std::array<const CudaKernel<DenseMmKernel>*, N> kernels;
  int count = 0;

  DenseKernels(const CudaKernel<DenseMmKernel> (&table)[N], int capability) {
    const char* left_out = nullptr;
    for (const auto& kernel : table) {
      if (!allowed(kernel.sm, capability)) continue;
      if (kernel.run) {
        tiles[count] = dense::tile_of(kernel.sm, kernel.name);
        kernels[count++] = &kernel;
      } else if (!left_out) {
        left_out = kernel.name;
      }
    }
    if (!count) throw std::runtime_error(no_kernel({table[N - 1].sm, table[N - 1].name}, left_out, capability));
  }

  bool takes(int config, const dense::Problem& problem) const { return dense::takes(tiles[config], problem); }

  // A kernel's place; config: -1 for the cost model's choice.
  int choose(int config, const dense::Problem& problem, const dense::Device& device, const char* op) const {
    const int index = config < 0 ? dense::choose(tiles, count, problem, device, [](int) { return true; }) : config;
    check_value(index >= 0 && takes(index, problem), op, config < 0 ? "x_dtype" : "config",
                index < 0 ? "no kernel" : kernels[index]->name, " does not take these operands");
    return index;
  }
};

inline const char* text_of(const MmCodes& codes) {
  if (codes.x.codes == Codes::int8) return "";
  if (codes.x.codes == Codes::e5m2) return codes.w == Codes::e5m2 ? "e5m2 and e5m2" : "e5m2 and e4m3";
  return codes.w == Codes::e5m2 ? "e4m3 and e5m2" : "e4m3 and e4m3";
}

// kernels_of: the op that has the kernels.
template <size_t N, size_t Q>
Tensor dense_mm(const MmCall& call, const char* kernels_of, const CudaKernel<DenseMmKernel> (&kernels)[N],
                const CudaKernel<QuantizeRowsCudaKernel> (&quantizers)[Q], const MmCodes& codes) {
  const char* const op = call.op;
  const PackedOperands& t = call.t;
  const OnDevice& on = call.device;
  auto run = [&](const PackedMm& args) {
    const int64_t pitch = ceil_div(args.k, 16) * 16, most = (int64_t{1} << 31) - 1024;
    check_value(args.m < most, op, "x", "expected fewer than 2^31 - 1024 rows, got ", args.m);
    check_value(args.n < most, op, "n", "expected less than 2^31 - 1024, got ", args.n);
    check_value(args.k < most, op, "x", "expected fewer than 2^31 - 1024 columns, got ", args.k);
    check_aligned(args.w.stream, 16, op, "packed");
    const Device model = device_of(t.x, on.capability, op);
    const dense::Device device{on.capability, model.multiprocessors, model.bytes_per_ns};
    const dense::Problem problem{
        args.m, args.n, pitch, args.out.dtype == Dtype::f32, codes.x.codes == Codes::e5m2, codes.w == Codes::e5m2};
    const DenseKernels<N> here(kernels, on.capability);

    const Tensor x_codes = new_tensor(t.x, {args.m, pitch}, ScalarType::Char);
    const Tensor x_scale = new_tensor(t.x, {codes.x.per_tensor ? 1 : args.m}, ScalarType::Float);
    const Tensor x_zero = new_tensor(t.x, {args.x.asymmetric ? args.m : 0}, ScalarType::Float);
    const Tensor ranges = new_tensor(t.x, {codes.x.per_tensor ? kPartialRanges : 0}, ScalarType::Float);
    auto* const scale = static_cast<float*>(x_scale.mutable_data_ptr());
    auto* const zero = static_cast<float*>(x_zero.mutable_data_ptr());
    QuantizeRows rows = quantize_x(args, codes.x, static_cast<uint8_t*>(x_codes.mutable_data_ptr()), scale, zero);
    rows.padded = true;
    rows.workspace = static_cast<float*>(ranges.mutable_data_ptr());
    select(quantizers, on.capability)(rows, on.stream);

    DenseMm mm{};
    mm.m = args.m;
    mm.n = args.n;
    mm.k = pitch;
    mm.x = rows.qdata;
    mm.w = args.w.stream;
    mm.x_scale = scale;
    mm.x_scale_stride = codes.x.per_tensor ? 0 : 1;
    mm.x_zero = args.x.asymmetric ? zero : nullptr;
    mm.scale = args.w.scales.scale;
    mm.scale_dtype = args.w.scales.dtype;
    mm.w_sum = args.w.sum;
    mm.bias = args.out.bias;
    mm.bias_dtype = args.out.bias_dtype;
    mm.out = args.out.data;
    mm.out_dtype = args.out.dtype;
    mm.multiprocessors = device.multiprocessors;
    auto multiply = [&](int one) {
      const int index = here.choose(one, problem, device, op);
      const int64_t bytes = dense::workspace_bytes(here.tiles[index], mm.m, mm.n, mm.multiprocessors);
      const Tensor workspace = new_tensor(t.x, {bytes}, ScalarType::Char);
      mm.workspace = workspace.mutable_data_ptr();
      last_kernel.store(here.kernels[index]->name, std::memory_order_relaxed);
      here.kernels[index]->run(mm, on.stream);
      on.check_launch();
    };
    run_config(
        {op, kernels_of, call.config, here.count, text_of(codes)}, args, t.x, on,
        [&](int one) { return here.takes(one, problem); }, multiply);
  };
  return packed_mm(op, t, call.n, {}, 0, [&] { return run; });
}

}  // namespace aoq
