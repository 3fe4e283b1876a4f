// One bit a code, in groups: codes 0..1, around 1 where no zero point is stored.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int1 : Affine<1> {};

}  // namespace
}  // namespace aoq
