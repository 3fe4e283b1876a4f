#include "simd/vec_avx2.h"
#include "ops/int4_unpack/int4_unpack_vector.h"

void aoq::int4_unpack_avx2(const Int4Unpack& p) { unpack(p); }
