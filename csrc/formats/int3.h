// Three bits a code, in groups: codes 0..7, around 4 where no zero point is stored.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int3 : Affine<3> {};

}  // namespace
}  // namespace aoq
