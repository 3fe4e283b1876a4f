// How fast this machine multiplies and reads memory: what benchmarks compare with, and how they tell a quiet moment.
#pragma once
#include <cstdint>

namespace aoq {

// peak_<kind>_<isa>(iterations): a loop of one instruction that touches no memory. Returns its multiply-adds, which the
// instruction counted itself: exact up to 500 000 iterations.
#define AOQ_PEAK(isa, kind, instruction) double peak_##kind##_##isa(int64_t iterations);
#include "probe/peaks.inc"
#undef AOQ_PEAK

}  // namespace aoq
