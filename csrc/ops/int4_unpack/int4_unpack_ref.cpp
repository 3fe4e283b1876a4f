#include "simd/vec_ref.h"
#include "ops/int4_unpack/int4_unpack_vector.h"

void aoq::int4_unpack_ref(const Int4Unpack& p) { unpack(p); }
