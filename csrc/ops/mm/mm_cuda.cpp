// mm on CUDA, on the kernels of the format's own ops. `offsets` are in the device's memory, and nothing waits for it:
// what raises on the CPU, offsets that descend or are beyond m, is taken for the nearest that do not
// (mm/cuda/experts.h).
#include <torch/csrc/stable/library.h>

#include "mm/cuda/mm_cuda.h"
#include "ops/mm/mm_entry.h"

namespace aoq {
namespace {

// A weight whose experts follow each other in memory.
mm_entry::Weight contiguous(mm_entry::Weight weight) {
  weight.packed = as_contiguous(weight.packed);
  weight.scale = as_contiguous(weight.scale);
  if (weight.zero_point) weight.zero_point = as_contiguous(*weight.zero_point);
  if (weight.w_sum) weight.w_sum = as_contiguous(*weight.w_sum);
  return weight;
}

Tensor mm_cuda(const Tensor& x, const std::vector<Tensor>& parts, const std::optional<Tensor>& bias, int64_t n,
               const std::string& format, const std::string& x_as, std::optional<int64_t> group_size,
               const std::optional<Tensor>& offsets, int64_t config) {
  const FormatId* const id = find_format(format);
  check_value(id != nullptr, mm_entry::kOp, "format", "expected one of ", format_names(), ", got ", format);
  const FormatInfo& info = info_of(*id);
  const auto codes = [](bool int8) { return int8 ? std::optional<XCodes>{{Codes::int8}} : std::nullopt; };
  const auto one = [&](bool int8, const Tensor& rows, const mm_entry::Weight& w, const std::optional<Tensor>& b) {
    return mm_on_cuda(mm_entry::kOp, *id, codes(int8), w.operands(rows, b), n, group_size, config);
  };
  const auto grouped = [&](bool int8, const Tensor& rows, const mm_entry::Weight& w, const std::optional<Tensor>& b,
                           const Tensor& offsets) {
    const int64_t count = mm_entry::check_experts(rows, w, b, n, offsets);
    if (count == 0) {
      Tensor out = new_tensor(rows, {rows.size(0), n});
      torch::stable::zero_(out);
      return out;
    }
    const mm_entry::Weight all = contiguous(w), first = all.expert(0);
    std::optional<Tensor> biases, first_bias;
    if (b) {
      biases = as_contiguous(*b);
      first_bias = torch::stable::select(*biases, 0, 0);
    }
    const Tensor ends = as_contiguous(offsets);
    const Experts experts{ends, count};
    return mm_on_cuda(mm_entry::kOp, *id, codes(int8), first.operands(rows, first_bias), n, group_size, config,
                      &experts);
  };
  const bool takes_int8 = info.op[static_cast<int>(XAs::int8)] != nullptr;
  return mm_entry::run(x, parts, bias, format, info.grouped, takes_int8, x_as, group_size, offsets, one, grouped);
}

}  // namespace
}  // namespace aoq

STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl("mm", TORCH_BOX(&aoq::mm_cuda)); }
