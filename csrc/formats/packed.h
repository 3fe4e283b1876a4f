// What all packed weights share: units of 64 bytes that hold sixteen rows of w, in sixteen 32-bit lanes.
#pragma once
#include <cstdint>

namespace aoq {
namespace {  // a copy in each file: ISA files are sealed

constexpr int64_t kUnitN = 16;
constexpr int64_t kUnitBytes = 64;

// a >= 0, b > 0; adding first would overflow for a group size near 2^63.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace
}  // namespace aoq
