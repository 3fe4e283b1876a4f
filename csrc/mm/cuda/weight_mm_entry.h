// What the CUDA entries of int8_weight_mm and fp8_weight_mm have in common: which kernel, and its workspace.
#pragma once
#include "autotune/autotune_cuda.h"
#include "mm/cuda/weight_mm.h"
#include "mm/packed_mm_entry.h"
#include "rows/quantize_rows.h"

namespace aoq {

template <size_t S, size_t W>
Tensor weight_mm(const char* op, const CudaKernel<WeightMmSkinnyKernel> (&few)[S],
                 const CudaKernel<WeightMmWideKernel> (&many)[W], const PackedOperands& t, int64_t n, Codes codes,
                 int64_t config) {
  check_tensor(t.x, op, "x");
  check_value(t.x.is_cuda(), op, "x", "expected the device of packed, ", device_name(t.packed), ", got ",
              device_name(t.x));
  const OnDevice device(t.x, op);
  auto launch = [&](auto call, auto kernel, int64_t floats) {
    Tensor workspace;
    if (floats) {
      workspace = new_tensor(t.x, {floats}, ScalarType::Float);
      call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    }
    kernel(call, device.stream);
    device.check_launch();
  };
  auto run = [&](PackedMm args) {
    check_cuda_sizes(args, op);
    check_aligned(args.w.stream, 16, op, "packed");
    args.w.e5m2 = codes == Codes::e5m2;
    const bool f32 = args.x.dtype == Dtype::f32, copies = needs_copy(args);
    const int planes = f32 ? kPlanes : 1;
    const Shape shape{args.m, args.n, args.k, args.k, 8}, of_planes{planes * args.m, args.n, args.k, args.k, 8};
    const Device model = device_of(t.x, device.capability, op);
    auto multiply = [&](int one) {
      const weight::Choice choice = weight::choose(of_planes, copies, model, one);
      if (choice.wide)
        launch(WeightMmWide{args, choice.many, nullptr}, select(many, device.capability),
               wide::workspace_of(choice.many, shape, planes, copies, false).end);
      else
        launch(WeightMmSkinny{args, choice.few, nullptr}, select(few, device.capability),
               skinny::workspace_floats(choice.few, false, f32, args.m, args.n, args.k));
    };
    const char* const text = codes == Codes::int8 ? "" : codes == Codes::e5m2 ? "e5m2" : "e4m3";
    run_config(
        {op, config, weight::kConfigs, text}, args, t.x, device,
        [&](int one) { return weight::differs(of_planes, one); }, multiply);
  };
  return packed_mm(op, t, n, {}, 0, [&] { return run; });
}

}  // namespace aoq
