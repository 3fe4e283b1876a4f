// fp8 e4m3, a scale for each row: formats/fp8.h says what codes stand for.
#pragma once
#include "formats/fp8_weight.h"

namespace aoq {
namespace {

struct Fp8E4m3 : Fp8Weight<E4m3> {};

}  // namespace
}  // namespace aoq
