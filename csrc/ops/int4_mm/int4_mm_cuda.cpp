#include "mm/cuda/nibble_mm_entry.h"

AOQ_NIBBLE_MM_OP(int4_mm, Int4, false)
