// Seven bits a code, in groups: codes 0..127, around 64 where no zero point is stored.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int7 : Affine<7> {};

}  // namespace
}  // namespace aoq
