// fp8 e4m3, a scale for each group of columns of a row: also what checkpoints store with a scale for each block of
// rows and columns. formats/fp8.h says what codes stand for.
#pragma once
#include "formats/fp8_weight.h"

namespace aoq {
namespace {

struct Fp8E4m3Grouped : Fp8Weight<E4m3, true> {};

}  // namespace
}  // namespace aoq
