// fp6 e2m3, in groups: up to 7.5 in steps of an eighth and more.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Fp6E2m3 : SmallFloat<2, 3> {};

static_assert(Fp6E2m3::value(1) == 0.125f && Fp6E2m3::value(31) == 7.5f);

}  // namespace
}  // namespace aoq
