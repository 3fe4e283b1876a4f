#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "formats/packed.h"
#include "ops/int8_pack/int8_pack_entry.h"

namespace aoq {
namespace {

// int8 [ceil(n/16)][16][k rounded up to 16]: rows as they are, each at a multiple of 16 bytes, as bulk copies need
// them.
Tensor int8_pack_cuda(const Tensor& qdata) {
  check_int8_codes(qdata);
  const int64_t n = qdata.size(0), k = qdata.size(1), tiles = ceil_div(n, kUnitN), columns = ceil_div(k, 16) * 16;
  const Tensor rows = torch::stable::pad(qdata, {0, columns - k, 0, tiles * kUnitN - n});  // copies, padding or not
  return torch::stable::view(torch::stable::contiguous(rows), {tiles, kUnitN, columns});
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int8_pack", TORCH_BOX(&aoq::int8_pack_cuda)); }
