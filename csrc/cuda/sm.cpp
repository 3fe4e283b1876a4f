#include "cuda/sm.h"

#include <atomic>
#include <cstdlib>
#include <map>

namespace aoq {
namespace {

struct SmName {
  Sm sm;
  const char* name;
};
constexpr SmName kNames[] = {{Sm::sm80, "sm80"}, {Sm::sm89, "sm89"}, {Sm::sm90a, "sm90a"}};

Sm parse(const std::string& wanted, const char* source) {
  if (wanted.empty()) return Sm::sm90a;
  std::string known;
  for (const SmName& sm : kNames) {
    if (wanted == sm.name) return sm.sm;
    known += (known.empty() ? "" : ", ") + std::string(sm.name);
  }
  throw std::invalid_argument(source + ("=" + wanted) + " is not an architecture that aoq has kernels for: " + known);
}

std::atomic<Sm>& most() {
  static std::atomic<Sm> sm{[] {
    const char* wanted = std::getenv("AOQ_SM");
    return parse(wanted ? wanted : "", "AOQ_SM");
  }()};
  return sm;
}

std::map<std::string, std::vector<CudaKernelName>>& tables() {
  static std::map<std::string, std::vector<CudaKernelName>> map;
  return map;
}

}  // namespace

bool allowed(Sm sm, int capability) {
  const int needed = static_cast<int>(sm);
  const bool runs = sm == Sm::sm90a ? capability == needed : capability >= needed;
  return runs && sm <= most().load(std::memory_order_relaxed);
}

void set_sm(const std::string& name) { most().store(parse(name, "set_sm")); }

bool register_cuda_op(const char* op, std::vector<CudaKernelName> names) {
  return tables().emplace(op, std::move(names)).second;
}

std::string no_kernel(const CudaKernelName& last, const char* left_out, int capability) {
  auto text = [](int version) { return std::to_string(version / 10) + "." + std::to_string(version % 10); };
  if (left_out)
    return std::string(left_out) + ", which compute capability " + text(capability) +
           " needs, is made with CUTLASS, and aoq was " +
           "built without: pip install --no-deps nvidia-cutlass==4.2.0.0, and build again";
  return std::string(last.name) + " and its likes do not run on compute capability " + text(capability) +
         ": they need " + text(static_cast<int>(last.sm)) + " or more, and AOQ_SM to allow it";
}

std::vector<std::string> cuda_kernel_names(const std::string& op, int capability) {
  std::vector<std::string> names;
  const auto found = tables().find(op);
  if (found == tables().end()) return names;  // an op without CUDA kernels, or libaoq_cuda is not loaded
  for (const CudaKernelName& kernel : found->second)
    if (allowed(kernel.sm, capability)) names.push_back(kernel.name);
  return names;
}

}  // namespace aoq
