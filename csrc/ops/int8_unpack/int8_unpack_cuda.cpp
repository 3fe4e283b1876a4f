#include <torch/csrc/stable/library.h>

#include "base/tensors.h"
#include "formats/packed.h"

namespace aoq {
namespace {

Tensor int8_unpack_cuda(const Tensor& packed, int64_t n, int64_t k) {
  constexpr const char* op = "int8_unpack";
  check_tensor(packed, op, "packed");
  check_type(dtype_of(packed) == ScalarType::Char, op, "packed", "expected int8, got ", dtype_name(dtype_of(packed)));
  check_value(n > 0, op, "n", "expected at least 1, got ", n);
  check_value(k > 0, op, "k", "expected at least 1, got ", k);
  check_size(k, op, "k");
  const int64_t tiles = ceil_div(n, kUnitN), columns = ceil_div(k, 16) * 16;
  check_shape(packed, {tiles, kUnitN, columns}, op, "packed");
  check_size(packed, op, "packed");
  Tensor packed_ = as_contiguous(packed);
  Tensor rows = torch::stable::view(packed_, {tiles * kUnitN, columns});
  rows = torch::stable::narrow(rows, 0, 0, n);
  rows = torch::stable::narrow(rows, 1, 0, k);
  Tensor qdata = new_tensor(packed, {n, k});
  return torch::stable::copy_(qdata, rows);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("int8_unpack", TORCH_BOX(&aoq::int8_unpack_cuda)); }
