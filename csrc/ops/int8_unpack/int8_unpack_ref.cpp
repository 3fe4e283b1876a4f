#include "simd/vec_ref.h"

#include "ops/int8_unpack/int8_unpack_vector.h"

void aoq::int8_unpack_ref(const Int8Unpack& p) { unpack(p); }
