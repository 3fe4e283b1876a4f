#include "base/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace aoq {
namespace {

constexpr const char* kNames[] = {"ref", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "avx512vbmi", "amx"};
constexpr int kCount = sizeof(kNames) / sizeof(kNames[0]);

#if defined(__x86_64__)
bool cpu_has_amx() {
#if defined(AOQ_EMULATE_AMX)
  return true;
#else
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr unsigned kAll = kAmxBf16 | kAmxTile | kAmxInt8;
  // Linux gives tile state only to a process that asks; without asking the first tile instruction is SIGILL.
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return (edx & kAll) == kAll && syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#endif
}

bool detect(Isa isa) {
  switch (isa) {
    case Isa::ref: return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avxvnni: return supported(Isa::avx2) && __builtin_cpu_supports("avxvnni");
    case Isa::avx512:
      return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx512vnni: return supported(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512bf16: return supported(Isa::avx512vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::avx512vbmi: return supported(Isa::avx512bf16) && __builtin_cpu_supports("avx512vbmi");
    case Isa::amx: return supported(Isa::avx512vbmi) && cpu_has_amx();
  }
  return false;
}
#else
bool detect(Isa isa) { return isa == Isa::ref; }
#endif

Isa parse(const std::string& wanted, const char* source) {
  std::string known;
  for (int i = 0; i < kCount; ++i) {
    if (wanted == kNames[i]) {
      if (supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
      throw std::invalid_argument(source + ("=" + wanted) + " is not supported by this machine; the best here is " +
                                  name(supported_isas().front()));
    }
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw std::invalid_argument(source + ("=" + wanted) + " is not an ISA that aoq knows: " + known);
}

Isa from_environment() {
  const char* wanted = std::getenv("AOQ_ISA");
  return wanted && *wanted ? parse(wanted, "AOQ_ISA") : supported_isas().front();
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{from_environment()};
  return isa;
}

}  // namespace

const char* name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool supported(Isa isa) {
  // Asked once: detection ends in a system call.
  switch (isa) {
#define AOQ_ONCE(x)                        \
  case Isa::x: {                           \
    static const bool ok = detect(Isa::x); \
    return ok;                             \
  }
    AOQ_ONCE(ref)
    AOQ_ONCE(avx2)
    AOQ_ONCE(avxvnni)
    AOQ_ONCE(avx512)
    AOQ_ONCE(avx512vnni)
    AOQ_ONCE(avx512bf16)
    AOQ_ONCE(avx512vbmi)
    AOQ_ONCE(amx)
#undef AOQ_ONCE
  }
  return false;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (int i = kCount - 1; i >= 0; --i)
    if (supported(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
  return isas;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) { active().store(parse(name, "set_isa")); }

}  // namespace aoq
