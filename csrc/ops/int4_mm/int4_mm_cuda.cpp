#include <torch/csrc/stable/library.h>

#include "formats/int4.h"
#include "mm/cuda/nibble_mm_entry.h"

namespace aoq {

AOQ_NIBBLE_KERNELS(int4_mm)

namespace {

const bool kRegistered = register_nibble_mm("int4_mm", int4_mm_kernels);

Tensor int4_mm_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero_point,
                    const std::optional<Tensor>& bias, int64_t n, int64_t group_size, int64_t config) {
  return nibble_mm({"int4_mm", int4_mm_kernels, Int4::kBits, false}, {x, packed, scale, zero_point, {}, bias}, n,
                   group_size, config);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int4_mm", TORCH_BOX(&aoq::int4_mm_cuda)); }
