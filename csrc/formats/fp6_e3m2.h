// fp6 e3m2, in groups: up to 28, from a sixteenth on.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Fp6E3m2 : SmallFloat<3, 2> {};

static_assert(Fp6E3m2::value(1) == 0.0625f && Fp6E3m2::value(31) == 28 && Fp6E3m2::value(63) == -28);

}  // namespace
}  // namespace aoq
