#include "mm/cuda/mm_op.h"

AOQ_MM_CUDA_OP(int8_int4_mm, int4, Int4, int8)
