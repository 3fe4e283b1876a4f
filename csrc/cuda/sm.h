// CUDA kernels by the compute capability that they need. `<op>/kernels_cuda.inc` lists `AOQ_KERNEL(sm, function)` best
// first, as kernels.inc does for the CPU; libaoq_cuda registers the tables when it loads. A line
// `AOQ_CUTLASS_KERNEL(sm, function)` is of a kernel made with CUTLASS (mm/cuda/dense_mm_sm90.cuh), built where CUTLASS
// is.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/kernel.h"

namespace aoq {

// Ascending. A kernel runs on devices of its own and every later compute capability; one for sm90a on 9.0 alone.
enum class Sm { sm80 = 80, sm89 = 89, sm90a = 90 };

template <class Function>
struct CudaKernel {
  Sm sm;
  const char* name;
  Function run;  // null: left out of this build
};

// What a table has as the function of a kernel made with CUTLASS.
#if defined(AOQ_CUTLASS)
#define AOQ_CUTLASS_FUNCTION(function) function
#else
#define AOQ_CUTLASS_FUNCTION(function) nullptr
#endif

struct CudaKernelName {
  Sm sm;
  const char* name;
};

// Whether a kernel runs on a device of this compute capability (10 * major + minor) and AOQ_SM allows it.
AOQ_API bool allowed(Sm sm, int capability);
AOQ_API void set_sm(const std::string& name);  // what AOQ_SM does, in a running process; "" allows all

AOQ_API bool register_cuda_op(const char* op, std::vector<CudaKernelName> names);
AOQ_API std::vector<std::string> cuda_kernel_names(const std::string& op, int capability);  // best first

template <class... Tables>
bool register_cuda_op(const char* op, const Tables&... tables) {
  std::vector<CudaKernelName> names;
  auto list = [&](const auto& table) {
    for (const auto& kernel : table)
      if (kernel.run) names.push_back({kernel.sm, kernel.name});
  };
  (list(tables), ...);
  return register_cuda_op(op, std::move(names));
}

// For the error of an op none of whose kernels can run: `last` needs the least of the device; `left_out` names one that
// this build lacks, or is null.
AOQ_API std::string no_kernel(const CudaKernelName& last, const char* left_out, int capability);

template <class Function, size_t N>
Function select(const CudaKernel<Function> (&kernels)[N], int capability) {
  const char* left_out = nullptr;
  for (const auto& kernel : kernels) {
    if (!allowed(kernel.sm, capability)) continue;
    if (!kernel.run) {
      if (!left_out) left_out = kernel.name;
      continue;
    }
    last_kernel.store(kernel.name, std::memory_order_relaxed);
    return kernel.run;
  }
  throw std::runtime_error(no_kernel({kernels[N - 1].sm, kernels[N - 1].name}, left_out, capability));
}

}  // namespace aoq
