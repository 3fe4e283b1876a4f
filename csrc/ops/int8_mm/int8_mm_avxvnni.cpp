#include "mm/x_int8_avxvnni.h"

#include "ops/int8_mm/int8_mm_vnni.h"

void aoq::int8_mm_avxvnni(const PackedMm& p) { VectorMm<Int8MmVnni<Int8AvxVnni>>::run(p); }
