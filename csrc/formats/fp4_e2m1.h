// fp4 e2m1, in groups: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. The codes of MXFP4 and NVFP4, whose scales are
// floats of 8 bits in files, and wider ones here.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Fp4E2m1 : SmallFloat<2, 1> {};

static_assert(Fp4E2m1::value(1) == 0.5f && Fp4E2m1::value(7) == 6 && Fp4E2m1::value(13) == -3);

}  // namespace
}  // namespace aoq
