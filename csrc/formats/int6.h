// Six bits a code, in groups: codes 0..63, around 32 where no zero point is stored.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int6 : Affine<6> {};

}  // namespace
}  // namespace aoq
