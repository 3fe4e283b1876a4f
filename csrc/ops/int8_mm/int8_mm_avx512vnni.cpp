#include "mm/x_int8_avx512vnni.h"

#include "ops/int8_mm/int8_mm_vnni.h"

void aoq::int8_mm_avx512vnni(const PackedMm& p) { VectorMm<Int8MmVnni<Int8Avx512Vnni>>::run(p); }
