// Eight bits a code, in groups: codes 0..255, around 128 where no zero point is stored. In units of bytes, as int8.
//
// int8 (a scale a row) scales sums once, at the end; here each group's sum has its own scale.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Int8Grouped : Affine<8> {};

}  // namespace
}  // namespace aoq
