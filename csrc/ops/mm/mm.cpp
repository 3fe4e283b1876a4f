// x times a packed weight of any format (formats/formats.inc), on the kernels of the format's own ops:
//
//   parts    packed, scale, zero_point, w_sum; an empty tensor, or none at the end, stands for one that there is not
//   x_as     "given", or "int8": quantized per row first, around a zero point where there is a w_sum
//   offsets  of experts: parts have one more dimension, and expert e multiplies the rows of x [m, k] before offsets[e]
//            that are not an expert's before it; rows after the last offset become zeros
#include "mm/mm.h"

#include <torch/csrc/stable/library.h>

#include "ops/mm/mm_entry.h"

namespace aoq {
namespace {

Tensor mm_any(const Tensor& x, const std::vector<Tensor>& parts, const std::optional<Tensor>& bias, int64_t n,
              const std::string& format, const std::string& x_as, std::optional<int64_t> group_size,
              const std::optional<Tensor>& offsets, int64_t config) {
  const FormatId* const id = find_format(format);
  check_value(id != nullptr, mm_entry::kOp, "format", "expected one of ", format_names(), ", got ", format);
  const FormatInfo& info = info_of(*id);
  const auto one = [&](bool int8, const Tensor& rows, const mm_entry::Weight& w, const std::optional<Tensor>& b) {
    const XAs as = int8 ? XAs::int8 : XAs::given;
    return mm(mm_entry::kOp, *id, as, w.operands(rows, b), n, group_size, config);
  };
  const bool takes_int8 = info.op[static_cast<int>(XAs::int8)] != nullptr;
  const auto grouped = [&](bool int8, const Tensor& rows, const mm_entry::Weight& w, const std::optional<Tensor>& b,
                           const Tensor& ends) {
    const auto expert = [&](const Tensor& some, const mm_entry::Weight& its, const std::optional<Tensor>& its_bias) {
      return one(int8, some, its, its_bias);
    };
    return mm_entry::one_by_one(rows, w, b, n, ends, expert);
  };
  return mm_entry::run(x, parts, bias, format, info.grouped, takes_int8, x_as, group_size, offsets, one, grouped);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) {
  m.def(
      "mm(Tensor x, Tensor[] parts, Tensor? bias, int n, str format, str x_as=\"given\", int? group_size=None, "
      "Tensor? offsets=None, int config=-1) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl("mm", TORCH_BOX(&aoq::mm_any)); }
