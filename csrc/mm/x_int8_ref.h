// X quantized to int8, in plain C++.
#pragma once
#include "mm/packed_mm_ref.h"

namespace {

template <class Format>
void run_int8_ref(const aoq::PackedMm& p) {
  multiply_ref<Format, true>(p);
}

}  // namespace
