// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n],   w[n, k] = (code[n, k] - zero_point[n, k / group]) * scale[n,
// k / group]
//
// x is used as given (bf16, fp16 or fp32), products are exact or fp32, sums are fp32, out has x's dtype.
// The zero point stays out of the inner loop: with codes taken as (code - 8) its share is a rank-(k / group) update,
//   out[m, n] += sum over groups g of (sum of x[m, k] over g) * (8 - zero_point[n, g]) * scale[n, g].
// For many rows of x, the kernel for AVX512_BF16 scales weights as it decodes them and rounds each once, to bf16; the
// fp32 kernels do the same in fp32.
#include "mm/mm_op.h"

AOQ_MM_OP(int4_mm, int4, Int4, given)
