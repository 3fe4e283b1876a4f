#include "simd/vec_avx512.h"
#include "ops/int4_unpack/int4_unpack_vector.h"

void aoq::int4_unpack_avx512(const Int4Unpack& p) { unpack(p); }
