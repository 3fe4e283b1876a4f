#include "simd/vec_avx2.h"

#include "ops/int8_pack/int8_pack_vector.h"

void aoq::int8_pack_avx2(const Int8Pack& p) { pack(p); }
