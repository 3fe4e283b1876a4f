// What int4_pack checks and allocates, on any device.
#pragma once
#include "base/tensors.h"
#include "formats/packed.h"
#include "ops/int4_pack/int4_pack.h"

namespace aoq {

// Calls run(Int4Pack). tile_k, tile_bytes: of the device's packed layout.
template <class Run>
Tensor int4_pack_entry(const Tensor& qdata, int64_t k, int64_t tile_k, int64_t tile_bytes, Run run) {
  constexpr const char* op = "int4_pack";
  check_uint8(qdata, op, "qdata");
  check_value(qdata.dim() == 2, op, "qdata", "expected shape [n, ceil(k/2)], got ", shape(qdata));
  check_value(k > 0, op, "k", "expected at least 1, got ", k);
  const int64_t n = qdata.size(0);
  check_shape(qdata, {n, ceil_div(k, 2)}, op, "qdata");
  check_value(n > 0, op, "qdata", "expected at least one row, got ", shape(qdata));
  check_size(qdata, op, "qdata");
  const Tensor qdata_ = as_contiguous(qdata);
  Tensor packed = new_tensor(qdata, {ceil_div(n, kUnitN), ceil_div(k, tile_k), tile_bytes});
  run(Int4Pack{n, k, static_cast<const uint8_t*>(qdata_.const_data_ptr()),
               static_cast<uint8_t*>(packed.mutable_data_ptr())});
  return packed;
}

}  // namespace aoq
