// What the CUDA entries of matmuls with 8-bit weights and x as given have in common: which kernel, and its workspace.
#pragma once
#include "mm/cuda/mm_call.h"
#include "mm/cuda/weight_mm.h"
#include "ops/int8_quantize/int8_quantize.h"

namespace aoq {

// An op whose kernels run: its name, its kernels, of which one of each kind takes every device, and the weight's codes.
struct WeightMm {
  const char* op;
  const CudaKernel<WeightMmSkinnyKernel>& few;
  const CudaKernel<WeightMmWideKernel>& many;
  Codes codes;
};

inline void run_choice(const MmCall& call, const WeightMm& mm, const PackedMm& p, const weight::Choice& choice) {
  const bool f32 = p.x.dtype == Dtype::f32;
  const int planes = f32 ? kPlanes : 1;
  auto launch = [&](auto args, const auto& kernel, int64_t floats) {
    const Tensor workspace = call.memory(4 * floats);
    if (floats) args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    const std::remove_reference_t<decltype(kernel)> table[] = {kernel};
    select(table, call.device.capability)(args, call.device.stream);
    call.device.check_launch();
  };
  if (choice.wide)
    launch(WeightMmWide{p, choice.many, nullptr}, mm.many,
           wide::workspace_of(choice.many, {p.m, p.n, p.k, p.k, 8}, planes, needs_copy(p), false).end);
  else
    launch(WeightMmSkinny{p, choice.few, nullptr}, mm.few,
           skinny::workspace_floats(choice.few, false, f32, p.m, p.n, p.k));
}

// x's rows as int8 codes, which 16-bit floats hold exactly: kernels for x as given multiply them, and scale their sums.
class Int8Rows {
 public:
  Int8Rows(const MmCall& call, PackedMm& p) {
    const int64_t pitch = ceil_div(p.k, 16) * 16;
    codes_ = call.memory(p.m * pitch);
    scales_ = call.memory(8 * p.m);
    x_ = call.memory(2 * p.m * pitch);
    auto* const scale = static_cast<float*>(scales_.mutable_data_ptr());
    QuantizeRows rows =
        quantize_x(p, {Codes::int8}, static_cast<uint8_t*>(codes_.mutable_data_ptr()), scale, scale + p.m);
    rows.padded = true;
    int8_quantize_sm80(rows, call.device.stream);
    call.device.check_launch();
    auto* const x = static_cast<uint16_t*>(x_.mutable_data_ptr());
    codes_as_bf16_sm80({p.m, p.k, reinterpret_cast<const int8_t*>(rows.qdata), pitch, x, pitch}, call.device.stream);
    call.device.check_launch();
    p.x.data = x;
    p.x.stride = pitch;
    p.x.dtype = Dtype::bf16;
    p.out.row_scale = scale;
    p.out.row_scale_stride = 1;
    p.out.row_zero = p.x.asymmetric ? scale + p.m : nullptr;
  }

 private:
  Tensor codes_, scales_, x_;  // as long as kernels are launched
};

// Rows of x that belong to experts, as given or as int8.
inline void run_experts(const MmCall& call, const WeightMm& mm, PackedMm p, bool int8, const Device& model) {
  check_expert_config(call, p, weight::kConfigs, weight::takes_experts);
  std::optional<Int8Rows> quantized;
  if (int8) quantized.emplace(call, p);
  const weight::Choice choice = weight::choose_for_experts({p.m, p.n, p.k, p.k, 8}, call.experts->count, needs_copy(p),
                                                           model, static_cast<int>(call.config));
  const ExpertList list(call, p, choice.wide ? choice.many.tokens : choice.few.tokens,
                        p.x.dtype == Dtype::f32 ? kPlanes : 1);
  run_choice(call, mm, p, choice);
}

// x_as: of experts int8, else nothing: mm/cuda/dense_mm_entry.h multiplies codes with codes.
inline Tensor weight_mm(const MmCall& call, const WeightMm& mm, const std::optional<XCodes>& x_as) {
  const char* const op = call.op;
  const OnDevice& device = call.device;
  auto run = [&](PackedMm args) {
    check_cuda_sizes(args, op);
    check_aligned(args.w.stream, 16, op, "packed");
    args.w.e5m2 = mm.codes == Codes::e5m2;
    const Device model = device_of(call.t.x, device.capability, op);
    if (call.experts) return run_experts(call, mm, args, x_as.has_value(), model);
    const bool copies = needs_copy(args);
    const int planes = args.x.dtype == Dtype::f32 ? kPlanes : 1;
    const Shape of_planes{planes * args.m, args.n, args.k, args.k, 8};
    const char* const text = mm.codes == Codes::int8 ? "" : mm.codes == Codes::e5m2 ? "e5m2" : "e4m3";
    run_config(
        {op, mm.op, call.config, weight::kConfigs, text}, args, call.t.x, device,
        [&](int one) { return weight::differs(of_planes, one); },
        [&](int one) { run_choice(call, mm, args, weight::choose(of_planes, copies, model, one)); });
  };
  return packed_mm(op, call.t, call.n, {}, 0, [&] { return run; });
}

}  // namespace aoq
