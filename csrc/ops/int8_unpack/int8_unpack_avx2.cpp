#include "simd/vec_avx2.h"

#include "ops/int8_unpack/int8_unpack_vector.h"

void aoq::int8_unpack_avx2(const Int8Unpack& p) { unpack(p); }
