// x is quantized to int8 per row (formats/int8_code.h): x[m, k] ~ (q[m, k] - x_zero[m]) * x_scale[m]. Then
//
//   out[m, n] = x_scale[m] * (scale[n] * (sum over k of q[m, k] * w_code[n, k]) - x_zero[m] * w_sum[n]) + bias[n]
//
// w_sum[n], the sum over k of w[n, k], is given when x is to be quantized asymmetrically.
#include "mm/mm_op.h"

AOQ_MM_OP(int8_mm, int8, Int8, int8)
