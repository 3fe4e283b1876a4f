// Five bits a code, in groups: codes 0..31, around 16 where no zero point is stored.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int5 : Affine<5> {};

}  // namespace
}  // namespace aoq
