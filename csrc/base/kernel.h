// A kernel table: `<op>/kernels.inc` lists `AOQ_KERNEL(isa, function)` best first; the first that the active ISA
// allows is called. The same table answers `aoq._C.kernels(op)` and parametrises the tests.
#pragma once
#include <atomic>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/isa.h"

namespace aoq {

template <class Function>
struct Kernel {
  Isa isa;
  const char* name;
  Function run;
};

struct KernelName {
  Isa isa;
  const char* name;
};

// Remembers an op's table for _C; called once an op, when the library loads.
bool register_op(const char* op, std::vector<KernelName> names);
AOQ_API std::vector<std::string> op_names();
AOQ_API extern std::atomic<const char*> last_kernel;  // the last that select gave: how tests know what ran
AOQ_API std::vector<std::string> kernel_names(const std::string& op);  // that run under the active ISA, best first

template <class Function, size_t N>
bool register_op(const char* op, const Kernel<Function> (&kernels)[N]) {
  std::vector<KernelName> names;
  for (const auto& kernel : kernels) names.push_back({kernel.isa, kernel.name});
  return register_op(op, std::move(names));
}

template <class Function, size_t N>
Function select(const Kernel<Function> (&kernels)[N]) {
  const Isa best = active_isa();
  size_t i = 0;
  while (kernels[i].isa > best) ++i;  // every table ends with ref
  last_kernel.store(kernels[i].name, std::memory_order_relaxed);
  return kernels[i].run;
}

}  // namespace aoq
