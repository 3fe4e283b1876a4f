#include "simd/vec_avx2.h"
#include "ops/int4_pack/int4_pack_vector.h"

void aoq::int4_pack_avx2(const Int4Pack& p) { pack(p); }
