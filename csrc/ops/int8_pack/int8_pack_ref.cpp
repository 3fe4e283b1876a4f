#include "simd/vec_ref.h"

#include "ops/int8_pack/int8_pack_vector.h"

void aoq::int8_pack_ref(const Int8Pack& p) { pack(p); }
