// Matmuls whose weights have one to four bits a code, in groups, on CUDA: packed as formats/nibbles_cuda.h says, x as
// given, or quantized to int8. Then, in PackedMm, x.data holds the codes in the order of quantized_k
// (rows/quantize_rows.h), rows of whole sixteens padded with zeros; out.row_scale and out.row_zero are theirs.
//
// Each op has three tables: kernels for few rows of x (skinny), which take every shape, for many (wide), and for many
// on Hopper (wgmma).
#pragma once
#include "cuda/cuda.h"
#include "mm/cuda/nibble_mm_config.h"
#include "mm/packed_mm.h"

namespace aoq {

struct NibbleSkinny {
  PackedMm mm;
  nibble_skinny::Plan plan;
  float* workspace;  // nibble_skinny::workspace_floats of them
};
using NibbleSkinnyKernel = void (*)(const NibbleSkinny&, CudaStream);

struct NibbleWide {
  PackedMm mm;
  nibble_wide::Plan plan;
  float* workspace;  // nibble_wide::workspace_of says how many
};
using NibbleWideKernel = void (*)(const NibbleWide&, CudaStream);

struct NibbleWgmma {
  PackedMm mm;
  nibble_wgmma::Plan plan;
  float* workspace;  // nibble_wgmma::workspace_of says how many
};
using NibbleWgmmaKernel = void (*)(const NibbleWgmma&, CudaStream);

// The formats that have these kernels, of those in formats/formats.inc with one to four bits a code. A format's take
// nvcc some five minutes, and up to 25 MB of the library: others are for the CPU, and ops say so on CUDA.
#define AOQ_NIBBLE_FORMATS int3 int4

// The kernels of op `mm`, best first in each table: with(sm, kernel). From these lines, cmake/instances.cmake makes a
// file for each kernel of each format.
#define AOQ_NIBBLE_SKINNY(with, mm) with(sm90a, mm##_sm90a) with(sm80, mm##_sm80)
#define AOQ_NIBBLE_WIDE(with, mm) with(sm80, mm##_wide_sm80)
#define AOQ_NIBBLE_WGMMA(with, mm) with(sm90a, mm##_wgmma_sm90a)

}  // namespace aoq
