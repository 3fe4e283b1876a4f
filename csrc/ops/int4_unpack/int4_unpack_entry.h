// What int4_unpack checks and allocates, on any device.
#pragma once
#include "base/tensors.h"
#include "formats/packed.h"
#include "ops/int4_unpack/int4_unpack.h"

namespace aoq {

// Calls run(Int4Unpack). tile_k, tile_bytes: of the device's packed layout.
template <class Run>
Tensor int4_unpack_entry(const Tensor& packed, int64_t n, int64_t k, int64_t tile_k, int64_t tile_bytes, Run run) {
  constexpr const char* op = "int4_unpack";
  check_uint8(packed, op, "packed");
  check_value(n > 0, op, "n", "expected at least 1, got ", n);
  check_value(k > 0, op, "k", "expected at least 1, got ", k);
  check_shape(packed, {ceil_div(n, kUnitN), ceil_div(k, tile_k), tile_bytes}, op, "packed");
  check_size(packed, op, "packed");
  const Tensor packed_ = as_contiguous(packed);
  Tensor qdata = new_tensor(packed, {n, ceil_div(k, 2)});
  run(Int4Unpack{n, k, static_cast<const uint8_t*>(packed_.const_data_ptr()),
                 static_cast<uint8_t*>(qdata.mutable_data_ptr())});
  return qdata;
}

}  // namespace aoq
