// mm on CUDA: of the formats that have kernels there, weights of one to four bits a code in groups.
#include <torch/csrc/stable/library.h>

#include "mm/cuda/nibble_mm_entry.h"
#include "ops/mm/mm_entry.h"

namespace aoq {

#define AOQ_NIBBLE_FORMAT(name, bits, op, op_of_int8) AOQ_NIBBLE_KERNELS(op) AOQ_NIBBLE_KERNELS(op_of_int8)
#include "nibble_formats.inc"
#undef AOQ_NIBBLE_FORMAT

namespace {

struct Format {
  const char* name;
  int bits;
  const char* op[2];  // of x as given, as int8: their kernels have its name
  const NibbleKernels* kernels[2];
};
constexpr Format kFormats[] = {
#define AOQ_NIBBLE_FORMAT(name, bits, op, op_of_int8) \
  {#name, bits, {#op, #op_of_int8}, {&op##_kernels, &op_of_int8##_kernels}},
#include "nibble_formats.inc"
#undef AOQ_NIBBLE_FORMAT
};

const bool kRegistered = [] {
  for (const Format& format : kFormats)
    for (int as = 0; as < 2; ++as) register_nibble_mm(format.op[as], *format.kernels[as]);
  return true;
}();

Tensor mm_cuda(const Tensor& x, const std::vector<Tensor>& parts, const std::optional<Tensor>& bias, int64_t n,
               const std::string& name, const std::string& x_as, std::optional<int64_t> group_size,
               const std::optional<Tensor>& offsets, int64_t config) {
  const Format* found = nullptr;
  std::string known;
  for (const Format& format : kFormats) {
    if (name == format.name) found = &format;
    known += (known.empty() ? "" : ", ") + std::string(format.name);
  }
  check_value(found != nullptr, mm_entry::kOp, "format", "expected one that has CUDA kernels, ", known, ", got ", name);
  check_value(!offsets, mm_entry::kOp, "offsets", "expected None on CUDA, which has no grouped kernels");
  const auto one = [&](bool int8, const Tensor& rows, const mm_entry::Weight& w, const std::optional<Tensor>& b) {
    return nibble_mm({mm_entry::kOp, *found->kernels[int8], found->bits, int8}, w.operands(rows, b), n, *group_size,
                     config);
  };
  return mm_entry::run(x, parts, bias, n, name, true, true, x_as, group_size, {}, one);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("mm", TORCH_BOX(&aoq::mm_cuda)); }
