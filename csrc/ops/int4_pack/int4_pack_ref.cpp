#include "simd/vec_ref.h"
#include "ops/int4_pack/int4_pack_vector.h"

void aoq::int4_pack_ref(const Int4Pack& p) { pack(p); }
