// CUDA kernels by the compute capability that they need. `<op>/kernels_cuda.inc` lists `AOQ_KERNEL(sm, function)` best
// first, as kernels.inc does for the CPU; libaoq_cuda registers the tables when it loads.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/kernel.h"

namespace aoq {

// Ascending. A kernel runs on devices of its own and every later compute capability; one for sm90a on 9.0 alone.
enum class Sm { sm80 = 80, sm89 = 89, sm90a = 90 };

template <class Function>
struct CudaKernel {
  Sm sm;
  const char* name;
  Function run;
};

struct CudaKernelName {
  Sm sm;
  const char* name;
};

// Whether a kernel runs on a device of this compute capability (10 * major + minor) and AOQ_SM allows it.
AOQ_API bool allowed(Sm sm, int capability);
AOQ_API void set_sm(const std::string& name);  // what AOQ_SM does, in a running process; "" allows all

AOQ_API bool register_cuda_op(const char* op, std::vector<CudaKernelName> names);
AOQ_API std::vector<std::string> cuda_kernel_names(const std::string& op, int capability);  // best first

template <class Function, size_t N>
bool register_cuda_op(const char* op, const CudaKernel<Function> (&kernels)[N]) {
  std::vector<CudaKernelName> names;
  for (const auto& kernel : kernels) names.push_back({kernel.sm, kernel.name});
  return register_cuda_op(op, std::move(names));
}

template <class Function, size_t N>
Function select(const CudaKernel<Function> (&kernels)[N], int capability) {
  for (const auto& kernel : kernels) {
    if (!allowed(kernel.sm, capability)) continue;
    last_kernel.store(kernel.name, std::memory_order_relaxed);
    return kernel.run;
  }
  throw std::runtime_error(std::string(kernels[0].name) + " and its likes do not run on compute capability " +
                           std::to_string(capability / 10) + "." + std::to_string(capability % 10) +
                           ": aoq's CUDA kernels need 8.0 or more, and AOQ_SM to allow it");
}

}  // namespace aoq
