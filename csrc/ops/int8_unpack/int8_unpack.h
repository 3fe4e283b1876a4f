// The exact inverse of int8_pack.
#pragma once
#include <cstdint>

#include "base/dtype.h"

namespace aoq {

struct Int8Unpack {
  int64_t n, k;
  const uint8_t* packed;  // [ceil(n/16)][ceil(k/4)][64]
  int8_t* qdata;          // [n][k]
};

using Int8UnpackKernel = void (*)(const Int8Unpack&);

#define AOQ_KERNEL(isa, function) void function(const Int8Unpack&);
#include "ops/int8_unpack/kernels.inc"
#undef AOQ_KERNEL

}  // namespace aoq
