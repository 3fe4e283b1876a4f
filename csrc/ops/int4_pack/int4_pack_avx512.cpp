#include "simd/vec_avx512.h"
#include "ops/int4_pack/int4_pack_vector.h"

void aoq::int4_pack_avx512(const Int4Pack& p) { pack(p); }
