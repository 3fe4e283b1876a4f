// Multiply-add instructions at full rate: twelve chains of sums in registers, each step adding products of ones, so
// that the sums count what was done. Sealed: included by probe_<isa>.cpp only.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

constexpr int kChains = 12;  // hides four cycles of latency at two instructions a cycle, and fits sixteen registers

// `step` adds to a register of kLanes sums of type Lane. Returns the total of all sums: the multiply-adds done.
template <class Lane, int kLanes, class Sum, class Step>
inline double run_chains(int64_t iterations, Sum zero, Step step) {
  // Unrolled throughout, and copied before it is read: what is indexed or has an address does not stay in registers.
  Sum sums[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sums[i] = zero;
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      sums[i] = step(sums[i]);
      asm volatile("" : "+x"(sums[i]));  // or the compiler would add all iterations up beforehand
    }
  }
  double total = 0;
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    const Sum sum = sums[i];
    Lane lanes[kLanes];
    std::memcpy(lanes, &sum, sizeof(lanes));
    for (const Lane lane : lanes) total += static_cast<double>(lane);
  }
  return total;
}

}  // namespace
