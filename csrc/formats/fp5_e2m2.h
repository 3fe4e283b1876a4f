// fp5 e2m2, in groups: 0, 0.25 .. 1.75, 2 .. 7 and their negatives.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Fp5E2m2 : SmallFloat<2, 2> {};

static_assert(Fp5E2m2::value(1) == 0.25f && Fp5E2m2::value(15) == 7);

}  // namespace
}  // namespace aoq
