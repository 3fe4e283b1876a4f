#include "mm/cuda/nibble_mm_entry.h"

AOQ_NIBBLE_MM_OP(int8_int4_mm, Int4, true)
