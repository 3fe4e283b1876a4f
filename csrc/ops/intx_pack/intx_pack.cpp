// Codes of any width between the layout of checkpoints and that of the CPU's kernels: formats/format.h says what they
// are. int4_pack and int8_pack do the same of four and eight bits, in vectors.
#include <torch/csrc/stable/library.h>

#include "base/huge_pages.h"
#include "base/tensors.h"
#include "formats/pack.h"

namespace aoq {
namespace {

void check_sizes(const char* op, int64_t k, int64_t bits) {
  check_value(bits >= 1 && bits <= 7, op, "bits", "expected 1 to 7 (int8_pack takes 8), got ", bits);
  check_value(k > 0, op, "k", "expected at least 1, got ", k);
  check_size(k, op, "k");
}

Tensor intx_pack(const Tensor& qdata, int64_t k, int64_t bits) {
  constexpr const char* op = "intx_pack";
  check_uint8(qdata, op, "qdata");
  check_value(qdata.dim() == 2 && qdata.size(0) > 0, op, "qdata",
              "expected shape [n, ceil(k * bits / 8)] with n > 0, got ", shape(qdata));
  const int64_t n = qdata.size(0);
  check_sizes(op, k, bits);
  check_shape(qdata, {n, ceil_div(k * bits, 8)}, op, "qdata");
  check_size(qdata, op, "qdata");
  const Tensor from = as_contiguous(qdata);
  Tensor packed;
  with_bits(bits, [&](auto width) {
    using P = Planes<decltype(width)::value>;
    packed = new_tensor(qdata, {ceil_div(n, kUnitN), ceil_div(k, P::kUnitK), P::kUnitBytes});
    auto* const to = static_cast<uint8_t*>(packed.mutable_data_ptr());
    prefer_huge_pages(to, packed.numel());
    pack_units<decltype(width)::value>(static_cast<const uint8_t*>(from.const_data_ptr()), n, k, to);
  });
  return packed;
}

Tensor intx_unpack(const Tensor& packed, int64_t n, int64_t k, int64_t bits) {
  constexpr const char* op = "intx_unpack";
  check_uint8(packed, op, "packed");
  check_value(n > 0, op, "n", "expected at least 1, got ", n);
  check_size(n, op, "n");
  check_sizes(op, k, bits);
  Tensor qdata;
  with_bits(bits, [&](auto width) {
    using P = Planes<decltype(width)::value>;
    check_shape(packed, {ceil_div(n, kUnitN), ceil_div(k, P::kUnitK), P::kUnitBytes}, op, "packed");
    check_size(packed, op, "packed");
    const Tensor from = as_contiguous(packed);
    qdata = new_tensor(packed, {n, ceil_div(k * bits, 8)});
    unpack_units<decltype(width)::value>(static_cast<const uint8_t*>(from.const_data_ptr()), n, k,
                                         static_cast<uint8_t*>(qdata.mutable_data_ptr()));
  });
  return qdata;
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def("intx_pack(Tensor qdata, int k, int bits) -> Tensor");
  m.def("intx_unpack(Tensor packed, int n, int k, int bits) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) {
  m.impl("intx_pack", TORCH_BOX(&aoq::intx_pack));
  m.impl("intx_unpack", TORCH_BOX(&aoq::intx_unpack));
}
