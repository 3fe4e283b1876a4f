// Every matmul with a packed weight on CUDA: the checked entry that named ops and `mm` share, as mm/mm.h is on the CPU.
#pragma once
#include "mm/mm.h"
#include "rows/quantize_x.h"

namespace aoq {

// Whose rows are whose, of a grouped matmul: mm/cuda/experts.h.
struct Experts {
  const Tensor& offsets;  // [count] int32 or int64, on x's device, contiguous
  int64_t count;
};

// Checks operands, then multiplies.
//   x_as     what x is quantized to first; nothing: used as given
//   group    of a grouped format, else nothing
//   config   a plan of the kernels', or -1: what cost models choose, or measurements if they are on
//   experts  or null. With them t has the parts of the first expert, which those of the others follow in memory.
Tensor mm_on_cuda(const char* op, FormatId format, const std::optional<XCodes>& x_as, const PackedOperands& t,
                  int64_t n, std::optional<int64_t> group, int64_t config, const Experts* experts = nullptr);

}  // namespace aoq
