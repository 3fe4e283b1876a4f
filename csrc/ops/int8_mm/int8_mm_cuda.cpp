#include "mm/cuda/mm_op.h"

AOQ_MM_CUDA_OP(int8_mm, int8, Int8, int8)
