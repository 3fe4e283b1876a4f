// A kernel table: rows of {what a kernel needs of the CPU, which arguments it takes, its function}, best first. The
// first row that fits is called, and its name is what is reported. The same table answers `aoq._C.kernels(op)` and
// parametrises the tests. An op's table is `<op>/kernels.inc`, lines of `AOQ_KERNEL(isa, function)`; matmuls with
// packed weights have one for all (mm/mm.h).
#pragma once
#include <atomic>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/isa.h"

namespace aoq {

// Whether a kernel multiplies m rows of x of this dtype; null: it takes all.
using Takes = bool (*)(int64_t m, Dtype x_dtype);

template <class Function>
struct Kernel {
  Isa isa;  // whose features it needs
  const char* name;
  Function run;
};

struct KernelName {
  Isa isa;
  const char* name;
  Takes takes = nullptr;
};

// Adds rows to a table for _C, called when the library loads: to an op's, or to that of kernels whose names begin so.
bool register_kernels(const char* table, const std::vector<KernelName>& names);
bool register_op(const char* op, const std::vector<KernelName>& names);
AOQ_API std::vector<std::string> op_names();          // that have a table
AOQ_API extern std::atomic<const char*> last_kernel;  // the last that select gave: how tests know what ran
AOQ_API std::vector<std::string> kernel_names(const std::string& op);  // that the active ISA allows, best first
AOQ_API std::string kernel_name(const std::string& op, int64_t m, Dtype x_dtype);  // that runs for these

template <class Function, size_t N>
bool register_op(const char* op, const Kernel<Function> (&kernels)[N]) {
  std::vector<KernelName> names;
  for (const auto& kernel : kernels) names.push_back({kernel.isa, kernel.name});
  return register_op(op, names);
}

template <class Function, size_t N>
Function select(const Kernel<Function> (&kernels)[N]) {
  size_t i = 0;
  while (!allowed(features_of(kernels[i].isa))) ++i;  // every table ends with ref
  last_kernel.store(kernels[i].name, std::memory_order_relaxed);
  return kernels[i].run;
}

}  // namespace aoq
