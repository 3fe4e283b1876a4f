// packed = qdata in the tiled layout of formats/int8.h; codes beyond n and k are 0.
#pragma once
#include <cstdint>

#include "base/dtype.h"

namespace aoq {

struct Int8Pack {
  int64_t n, k;
  const int8_t* qdata;  // [n][k]
  uint8_t* packed;      // [ceil(n/16)][ceil(k/4)][64]
};

using Int8PackKernel = void (*)(const Int8Pack&);

#define AOQ_KERNEL(isa, function) void function(const Int8Pack&);
#include "ops/int8_pack/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
