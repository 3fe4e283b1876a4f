// x is quantized to int8 per row (formats/int8_code.h): x[m, k] ~ (q[m, k] - x_zero[m]) * x_scale[m]. Then
//
//   out[m, n] = x_scale[m] * (sum over groups g of scale[n, g] * (sum over k in g of q[m, k] * (code[n, k] -
//   zero_point[n, g]))
//                             - x_zero[m] * w_sum[n]) + bias[n]
//
// Sums over a group are exact integers, each group's scale is applied to them in fp32: nothing is rounded to 8 bits
// twice. w_sum[n], the sum over k of w[n, k], is given when x is to be quantized asymmetrically.
#include "mm/mm_op.h"

AOQ_MM_OP(int8_int4_mm, int4, Int4, int8)
