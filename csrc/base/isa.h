// Which instruction sets exist here, and which one is used.
#pragma once
#include <string>
#include <vector>

// Seen from _C; everything else stays inside the library.
#define AOQ_API __attribute__((visibility("default")))

namespace aoq {

// Ascending: a machine that has one has all before it, and a kernel for one runs on all after it. Only avxvnni is a
// branch: of machines with AVX-512 some lack it, so an op that has a kernel for it has one for avx512, too.
enum class Isa { ref, avx2, avxvnni, avx512, avx512vnni, avx512bf16, avx512vbmi, amx };

AOQ_API const char* name(Isa isa);
bool supported(Isa isa);                        // by this CPU, its OS and this build
AOQ_API std::vector<Isa> supported_isas();      // best first
AOQ_API Isa active_isa();                       // AOQ_ISA if set, else the best supported
AOQ_API void set_isa(const std::string& name);  // for tests and benchmarks: what AOQ_ISA does, in a running process

}  // namespace aoq
