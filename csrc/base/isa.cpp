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

constexpr const char* kNames[] = {
#define AOQ_ISA(name, features) #name,
#include "base/isas.inc"
#undef AOQ_ISA
};
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

Features detect() {
  Features found = 0;
  const auto add = [&](bool has, Feature feature) {
    if (has) found |= feature;
  };
  add(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"), kAvx2);
  add(__builtin_cpu_supports("avxvnni"), kAvxVnni);
  add(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq"),
      kAvx512);
  add(__builtin_cpu_supports("avx512vnni"), kAvx512Vnni);
  add(__builtin_cpu_supports("avx512bf16"), kAvx512Bf16);
  add(__builtin_cpu_supports("avx512vbmi"), kAvx512Vbmi);
  if (contains(found, features_of(Isa::avx512vbmi))) add(cpu_has_amx(), kAmx);
  return found;
}
#else
Features detect() { return 0; }
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
  static const Features features = detect();  // asked once: it ends in a system call
  return contains(features, features_of(isa));
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
