#include "core/vec_ref.h"
#include "int4_unpack/int4_unpack_vector.h"

void aoq::int4_unpack_ref(const Int4Unpack& p) { unpack(p); }
