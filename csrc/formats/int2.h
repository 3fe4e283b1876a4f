// Two bits a code, in groups: codes 0..3, around 2 where no zero point is stored.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int2 : Affine<2> {};

}  // namespace
}  // namespace aoq
