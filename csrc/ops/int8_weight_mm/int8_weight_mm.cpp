// out[m, n] = (sum over k of x[m, k] * code[n, k]) * scale[n] + bias[n]
//
// codes are int8 in tiles (formats/int8.h). x is used as given (bf16, fp16 or fp32): every product of bf16 and a code
// is exact in fp32, sums are fp32 and are scaled once.
#include "mm/mm_op.h"

AOQ_MM_OP(int8_weight_mm, int8, Int8, given)
