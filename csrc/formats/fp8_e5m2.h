// fp8 e5m2, a scale for each row: formats/fp8.h says what codes stand for.
#pragma once
#include "formats/fp8_weight.h"

namespace aoq {
namespace {

struct Fp8E5m2 : Fp8Weight<E5m2> {};

}  // namespace
}  // namespace aoq
