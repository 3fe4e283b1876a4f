// What the CUDA entries of ops with weights of one to four bits a code have in common: which of the kernels runs, its
// workspace, and for an int8 x the kernel that quantizes it first.
#pragma once
#include "formats/nibbles_cuda.h"
#include "mm/cuda/mm_call.h"
#include "mm/cuda/nibble_mm.h"
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

// An op whose kernels run: its name, its kernels, the bits of a weight's code, and whether x is quantized to int8.
struct NibbleMm {
  const char* op;
  const NibbleKernels& kernels;
  int w_bits;
  bool x_int8;
};

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

// Launches the chosen kernel, of those for `capability`.
inline void launch(const NibbleMm& mm, const PackedMm& p, const nibble_config::Choice& choice, float* workspace,
                   const OnDevice& device, int capability) {
  const NibbleKernels& kernels = mm.kernels;
  switch (choice.kernels) {
    case nibble_config::Kernels::wgmma:
      select(kernels.wgmma, capability)({p, choice.wgmma, workspace}, device.stream);
      break;
    case nibble_config::Kernels::wide:
      select(kernels.wide, capability)({p, choice.wide, workspace}, device.stream);
      break;
    case nibble_config::Kernels::skinny:
      select(kernels.skinny, capability)({p, choice.skinny, workspace}, device.stream);
      break;
  }
  device.check_launch();
}

// x as given.
inline void multiply(const NibbleMm& mm, const PackedMm& p, const nibble_config::Choice& choice, const Tensor& x,
                     const OnDevice& device, int capability) {
  Tensor workspace;
  float* memory = nullptr;
  if (const int64_t floats = workspace_floats(mm, p, choice, capability)) {
    workspace = new_tensor(x, {floats}, ScalarType::Float);
    memory = static_cast<float*>(workspace.mutable_data_ptr());
  }
  launch(mm, p, choice, memory, device, capability);
}

// x becomes int8 codes in the order of quantized_k, then is multiplied.
inline void quantize_and_multiply(const NibbleMm& mm, PackedMm p, const nibble_config::Choice& choice, const Tensor& x,
                                  const OnDevice& device, int capability) {
  // One allocation: codes, which are whole sixteens, scales and zero points of rows, what the kernel takes.
  const int64_t pitch = ceil_div(p.k, 16) * 16, codes = p.m * pitch, rows = ceil_div(2 * p.m, 4) * 4;
  const int64_t floats = codes / 4 + rows + workspace_floats(mm, p, choice, capability);
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
  launch(mm, p, choice, x_scale + rows, device, capability);
}

inline void run_choice(const MmCall& call, const NibbleMm& mm, const PackedMm& p, const nibble_config::Choice& choice,
                       int capability) {
  mm.x_int8 ? quantize_and_multiply(mm, p, choice, call.t.x, call.device, capability)
            : multiply(mm, p, choice, call.t.x, call.device, capability);
}

// Rows of x that belong to experts: by the kernels that any device has.
inline void run_experts(const MmCall& call, const NibbleMm& mm, PackedMm p, const Device& model) {
  const nibble_config::Problem problem = problem_of(mm, p, false);
  check_expert_config(call, p, nibble_config::configs(problem), nibble_config::takes_experts);
  const nibble_config::Choice choice =
      nibble_config::choose_for_experts(problem, p.m, call.experts->count, model, static_cast<int>(call.config));
  const int tokens = choice.kernels == nibble_config::Kernels::wide ? choice.wide.tokens : choice.skinny.tokens;
  const ExpertList list(call, p, tokens, p.x.dtype == Dtype::f32 && !mm.x_int8 ? kPlanes : 1);
  run_choice(call, mm, p, choice, 80);
}

inline Tensor nibble_mm(const MmCall& call, const NibbleMm& mm, int64_t group_size) {
  const char* const op = call.op;
  const OnDevice& device = call.device;
  auto run = [&](const PackedMm& p) {
    check_cuda_sizes(p, op);
    check_aligned(p.w.stream, 16, op, "packed");
    check_aligned(p.w.scales.scale, 4, op, "scale");
    check_aligned(p.w.scales.zero_point, 4, op, "zero_point");
    const Device model = device_of(call.t.x, device.capability, op);
    if (call.experts) return run_experts(call, mm, p, model);
    const nibble_config::Problem problem = problem_of(mm, p, allowed(Sm::sm90a, device.capability));
    auto run_one = [&](int one) {
      run_choice(call, mm, p, nibble_config::choose(problem, model, one), device.capability);
    };
    run_config(
        {op, mm.op, call.config, nibble_config::configs(problem), ""}, p, call.t.x, device,
        [&](int one) { return nibble_config::differs(problem, one); }, run_one);
  };
  return packed_mm(
      op, call.t, call.n, group_size, nibbles::kTileK, [&] { return run; }, nibbles::tile_bytes(mm.w_bits));
}

}  // namespace aoq
