// X as given, in plain C++.
#pragma once
#include "mm/packed_mm_ref.h"

namespace {

template <class Format>
void run_given_ref(const aoq::PackedMm& p) {
  multiply_ref<Format, false>(p);
}

}  // namespace
