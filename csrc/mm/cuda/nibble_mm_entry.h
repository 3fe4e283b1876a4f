// What the CUDA entries of ops with weights of one to four bits a code have in common: which of the kernels runs, its
// workspace, and for an int8 x the kernel that quantizes it first.
#pragma once
#include <torch/csrc/stable/library.h>

#include "autotune/autotune_cuda.h"
#include "formats/int4.h"
#include "formats/nibbles_cuda.h"
#include "mm/cuda/nibble_mm.h"
#include "mm/mm_arguments.h"
#include "ops/int8_quantize/int8_quantize.h"
#include "rows/quantize_x.h"

namespace aoq {

#define AOQ_NIBBLE_ONE(sm, function) +1
struct NibbleKernels {
  CudaKernel<NibbleSkinnyKernel> skinny[AOQ_NIBBLE_SKINNY(AOQ_NIBBLE_ONE, )];
  CudaKernel<NibbleWideKernel> wide[AOQ_NIBBLE_WIDE(AOQ_NIBBLE_ONE, )];
  CudaKernel<NibbleWgmmaKernel> wgmma[AOQ_NIBBLE_WGMMA(AOQ_NIBBLE_ONE, )];
};
#undef AOQ_NIBBLE_ONE

// Declares op `mm`'s kernels, and defines `mm_kernels`, their tables.
#define AOQ_NIBBLE_LINE(sm, function) {Sm::sm, #function, function},
#define AOQ_NIBBLE_SKINNY_DECLARE(sm, function) void function(const NibbleSkinny&, CudaStream);
#define AOQ_NIBBLE_WIDE_DECLARE(sm, function) void function(const NibbleWide&, CudaStream);
#define AOQ_NIBBLE_WGMMA_DECLARE(sm, function) void function(const NibbleWgmma&, CudaStream);
#define AOQ_NIBBLE_KERNELS(mm)                                                      \
  AOQ_NIBBLE_SKINNY(AOQ_NIBBLE_SKINNY_DECLARE, mm)                                  \
  AOQ_NIBBLE_WIDE(AOQ_NIBBLE_WIDE_DECLARE, mm)                                      \
  AOQ_NIBBLE_WGMMA(AOQ_NIBBLE_WGMMA_DECLARE, mm)                                    \
  constexpr NibbleKernels mm##_kernels = {{AOQ_NIBBLE_SKINNY(AOQ_NIBBLE_LINE, mm)}, \
                                          {AOQ_NIBBLE_WIDE(AOQ_NIBBLE_LINE, mm)},   \
                                          {AOQ_NIBBLE_WGMMA(AOQ_NIBBLE_LINE, mm)}};

// An op: its name, its kernels, the bits of a weight's code, and whether x is quantized to int8.
struct NibbleMm {
  const char* op;
  const NibbleKernels& kernels;
  int w_bits;
  bool x_int8;
};

inline bool register_nibble_mm(const char* op, const NibbleKernels& kernels) {
  return register_cuda_op(op, kernels.skinny, kernels.wide, kernels.wgmma);
}

// The problem as the plans see it.
inline Shape shape_of(const NibbleMm& mm, const PackedMm& p) {
  return {p.m, p.n, p.k, p.group, mm.w_bits, mm.x_int8 ? 1 : 2};
}

// What decides among the kernels. hopper: wgmma's run here.
inline nibble_config::Problem problem_of(const NibbleMm& mm, const PackedMm& p, bool hopper) {
  const bool zero = p.w.scales.zero_point, aligned = (reinterpret_cast<uintptr_t>(p.w.scales.scale) |
                                                      reinterpret_cast<uintptr_t>(p.w.scales.zero_point)) %
                                                         16 ==
                                                     0;
  Shape shape = shape_of(mm, p);
  int before = zero;
  if (!mm.x_int8) {
    if (p.x.dtype == Dtype::f32) shape.m *= kPlanes;
    before += needs_copy(p);
  }
  return {shape, zero, p.w.scales.dtype == Dtype::f32 ? 4 : 2, before, hopper && aligned};
}

// Floats of workspace that the chosen kernel takes.
inline int64_t workspace_floats(const NibbleMm& mm, const PackedMm& p, const nibble_config::Choice& choice,
                                int capability) {
  const bool f32 = !mm.x_int8 && p.x.dtype == Dtype::f32, copies = !mm.x_int8 && needs_copy(p),
             zero = p.w.scales.zero_point;
  const int planes = f32 ? kPlanes : 1;
  const Shape shape = shape_of(mm, p);
  switch (choice.kernels) {
    case nibble_config::Kernels::wgmma: return nibble_wgmma::workspace_of(shape, planes, copies, zero).end;
    case nibble_config::Kernels::wide: return nibble_wide::workspace_of(choice.wide, shape, planes, copies, zero).end;
    case nibble_config::Kernels::skinny: break;
  }
  return nibble_skinny::workspace_floats(choice.skinny, allowed(Sm::sm90a, capability), f32, p.m, p.n, p.k);
}

// Launches the chosen kernel.
inline void launch(const NibbleMm& mm, const PackedMm& p, const nibble_config::Choice& choice, float* workspace,
                   const OnDevice& device) {
  const NibbleKernels& kernels = mm.kernels;
  switch (choice.kernels) {
    case nibble_config::Kernels::wgmma:
      select(kernels.wgmma, device.capability)({p, choice.wgmma, workspace}, device.stream);
      break;
    case nibble_config::Kernels::wide:
      select(kernels.wide, device.capability)({p, choice.wide, workspace}, device.stream);
      break;
    case nibble_config::Kernels::skinny:
      select(kernels.skinny, device.capability)({p, choice.skinny, workspace}, device.stream);
      break;
  }
  device.check_launch();
}

// x as given.
inline void multiply(const NibbleMm& mm, const PackedMm& p, const nibble_config::Choice& choice, const Tensor& x,
                     const OnDevice& device) {
  Tensor workspace;
  float* memory = nullptr;
  if (const int64_t floats = workspace_floats(mm, p, choice, device.capability)) {
    workspace = new_tensor(x, {floats}, ScalarType::Float);
    memory = static_cast<float*>(workspace.mutable_data_ptr());
  }
  launch(mm, p, choice, memory, device);
}

// x becomes int8 codes in the order of quantized_k, then is multiplied.
inline void quantize_and_multiply(const NibbleMm& mm, PackedMm p, const nibble_config::Choice& choice, const Tensor& x,
                                  const OnDevice& device) {
  // One allocation: codes, which are whole sixteens, scales and zero points of rows, what the kernel takes.
  const int64_t pitch = ceil_div(p.k, 16) * 16, codes = p.m * pitch, rows = ceil_div(2 * p.m, 4) * 4;
  const int64_t floats = codes / 4 + rows + workspace_floats(mm, p, choice, device.capability);
  Tensor workspace = new_tensor(x, {floats}, ScalarType::Float);
  auto* const memory = static_cast<float*>(workspace.mutable_data_ptr());
  float* const x_scale = memory + codes / 4;
  QuantizeRows quantize = quantize_x(p, {Codes::int8}, reinterpret_cast<uint8_t*>(memory), x_scale, x_scale + p.m);
  quantize.permute = true;
  int8_quantize_sm80(quantize, device.stream);
  device.check_launch();

  p.x.data = quantize.qdata;
  p.x.stride = pitch;
  p.out.row_scale = x_scale;
  p.out.row_scale_stride = 1;
  p.out.row_zero = p.x.asymmetric ? x_scale + p.m : nullptr;
  launch(mm, p, choice, x_scale + rows, device);
}

inline Tensor nibble_mm(const NibbleMm& mm, const PackedOperands& t, int64_t n, int64_t group_size, int64_t config) {
  const char* const op = mm.op;
  check_tensor(t.x, op, "x");
  check_value(t.x.is_cuda(), op, "x", "expected the device of packed, ", device_name(t.packed), ", got ",
              device_name(t.x));
  const OnDevice device(t.x, op);
  auto run = [&](const PackedMm& p) {
    check_cuda_sizes(p, op);
    check_aligned(p.w.stream, 16, op, "packed");
    check_aligned(p.w.scales.scale, 4, op, "scale");
    check_aligned(p.w.scales.zero_point, 4, op, "zero_point");
    const nibble_config::Problem problem = problem_of(mm, p, allowed(Sm::sm90a, device.capability));
    const Device model = device_of(t.x, device.capability, op);
    auto run_one = [&](int one) {
      const nibble_config::Choice choice = nibble_config::choose(problem, model, one);
      mm.x_int8 ? quantize_and_multiply(mm, p, choice, t.x, device) : multiply(mm, p, choice, t.x, device);
    };
    run_config(
        {op, config, nibble_config::configs(problem), ""}, p, t.x, device,
        [&](int one) { return nibble_config::differs(problem, one); }, run_one);
  };
  return packed_mm(op, t, n, group_size, nibbles::kTileK, [&] { return run; }, nibbles::tile_bytes(mm.w_bits));
}

}  // namespace aoq

// An op of its own (mm/mm_op.h): its kernel on CUDA.
#define AOQ_NIBBLE_MM_OP(op, Format, x_int8)                                                                   \
  namespace aoq {                                                                                              \
  AOQ_NIBBLE_KERNELS(op)                                                                                       \
  namespace {                                                                                                  \
  const bool kRegistered = register_nibble_mm(#op, op##_kernels);                                              \
  struct Op {                                                                                                  \
    static Tensor run(const PackedOperands& t, int64_t n, std::optional<int64_t> group_size, int64_t config) { \
      return nibble_mm({#op, op##_kernels, Format::kBits, x_int8}, t, n, *group_size, config);                 \
    }                                                                                                          \
  };                                                                                                           \
  }                                                                                                            \
  }                                                                                                            \
  STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl(#op, TORCH_BOX((&aoq::MmArguments<true, x_int8>::call<aoq::Op>))); }
