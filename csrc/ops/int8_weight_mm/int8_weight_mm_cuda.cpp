#include "mm/cuda/mm_op.h"

AOQ_MM_CUDA_OP(int8_weight_mm, int8, Int8, given)
