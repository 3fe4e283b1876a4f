// Which instruction sets exist here, and which one is used.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

// Seen from _C; everything else stays inside the library.
#define AOQ_API __attribute__((visibility("default")))

namespace aoq {

// What a CPU can or cannot do, as far as kernels differ by it. A set of them is what a kernel needs, and what a machine
// has: sets have no order, so that a feature may come with any others, or another processor's none.
using Features = uint32_t;
enum Feature : Features {
  kAvx2 = 1 << 0,  // with FMA and F16C
  kAvxVnni = 1 << 1,
  kAvx512 = 1 << 2,  // F, BW, VL, DQ
  kAvx512Vnni = 1 << 3,
  kAvx512Bf16 = 1 << 4,
  kAvx512Vbmi = 1 << 5,
  kAmx = 1 << 6,  // TILE, BF16, INT8
};

enum class Isa {
#define AOQ_ISA(name, features) name,
#include "base/isas.inc"
#undef AOQ_ISA
};

constexpr Features kIsaFeatures[] = {
#define AOQ_ISA(name, features) features,
#include "base/isas.inc"
#undef AOQ_ISA
};
constexpr Features features_of(Isa isa) { return kIsaFeatures[static_cast<int>(isa)]; }
constexpr bool contains(Features all, Features some) { return (some & ~all) == 0; }

AOQ_API const char* name(Isa isa);
bool supported(Isa isa);                        // by this CPU, its OS and this build
AOQ_API std::vector<Isa> supported_isas();      // best first
AOQ_API Isa active_isa();                       // AOQ_ISA if set, else the best supported
AOQ_API void set_isa(const std::string& name);  // for tests and benchmarks: what AOQ_ISA does, in a running process

// Whether kernels that need these may run under the active ISA.
inline bool allowed(Features needed) { return contains(features_of(active_isa()), needed); }

}  // namespace aoq
