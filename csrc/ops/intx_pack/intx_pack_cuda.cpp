// intx_pack and intx_unpack on CUDA: of the widths whose formats have kernels there, to tiles (formats/nibbles_cuda.h).
#include <torch/csrc/stable/library.h>

#include "base/tensors.h"
#include "cuda/cuda_entry.h"
#include "formats/nibbles_cuda.h"
#include "ops/int4_pack/int4_pack.h"
#include "ops/int4_unpack/int4_unpack.h"

namespace aoq {

#define AOQ_NIBBLE_FORMAT(name, bits, op, op_of_int8) \
  void name##_pack_sm80(const Int4Pack&, CudaStream); \
  void name##_unpack_sm80(const Int4Unpack&, CudaStream);
#include "nibble_formats.inc"
#undef AOQ_NIBBLE_FORMAT

namespace {

struct Width {
  int bits;
  void (*pack)(const Int4Pack&, CudaStream);
  void (*unpack)(const Int4Unpack&, CudaStream);
};
constexpr Width kWidths[] = {
#define AOQ_NIBBLE_FORMAT(name, bits, op, op_of_int8) {bits, name##_pack_sm80, name##_unpack_sm80},
#include "nibble_formats.inc"
#undef AOQ_NIBBLE_FORMAT
};

const Width& width_of(const char* op, int64_t k, int64_t bits) {
  std::string known;
  for (const Width& width : kWidths) {
    if (width.bits == bits) {
      check_value(k > 0, op, "k", "expected at least 1, got ", k);
      check_size(k, op, "k");
      return width;
    }
    known += (known.empty() ? "" : ", ") + std::to_string(width.bits);
  }
  check_value(false, op, "bits", "expected one that has CUDA kernels, ", known, ", got ", bits);
  return kWidths[0];
}

Tensor intx_pack_cuda(const Tensor& qdata, int64_t k, int64_t bits) {
  constexpr const char* op = "intx_pack";
  check_uint8(qdata, op, "qdata");
  check_value(qdata.dim() == 2 && qdata.size(0) > 0, op, "qdata",
              "expected shape [n, ceil(k * bits / 8)] with n > 0, got ", shape(qdata));
  const Width& width = width_of(op, k, bits);
  const OnDevice device(qdata, op);
  const int64_t n = qdata.size(0);
  check_shape(qdata, {n, ceil_div(k * bits, 8)}, op, "qdata");
  check_size(qdata, op, "qdata");
  const Tensor from = as_contiguous(qdata);
  Tensor packed =
      new_tensor(qdata, {ceil_div(n, kUnitN), ceil_div(k, nibbles::kTileK), nibbles::tile_bytes(width.bits)});
  width.pack(
      {n, k, static_cast<const uint8_t*>(from.const_data_ptr()), static_cast<uint8_t*>(packed.mutable_data_ptr())},
      device.stream);
  device.check_launch();
  return packed;
}

Tensor intx_unpack_cuda(const Tensor& packed, int64_t n, int64_t k, int64_t bits) {
  constexpr const char* op = "intx_unpack";
  check_uint8(packed, op, "packed");
  check_value(n > 0, op, "n", "expected at least 1, got ", n);
  check_size(n, op, "n");
  const Width& width = width_of(op, k, bits);
  const OnDevice device(packed, op);
  check_shape(packed, {ceil_div(n, kUnitN), ceil_div(k, nibbles::kTileK), nibbles::tile_bytes(width.bits)}, op,
              "packed");
  check_size(packed, op, "packed");
  const Tensor from = as_contiguous(packed);
  check_aligned(static_cast<const uint8_t*>(from.const_data_ptr()), 16, op, "packed");
  Tensor qdata = new_tensor(packed, {n, ceil_div(k * bits, 8)});
  width.unpack(
      {n, k, static_cast<const uint8_t*>(from.const_data_ptr()), static_cast<uint8_t*>(qdata.mutable_data_ptr())},
      device.stream);
  device.check_launch();
  return qdata;
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) {
  m.impl("intx_pack", TORCH_BOX(&aoq::intx_pack_cuda));
  m.impl("intx_unpack", TORCH_BOX(&aoq::intx_unpack_cuda));
}
