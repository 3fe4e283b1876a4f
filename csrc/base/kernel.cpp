#include "base/kernel.h"

#include <map>
#include <stdexcept>

namespace aoq {
namespace {
std::map<std::string, std::vector<KernelName>>& tables() {
  static std::map<std::string, std::vector<KernelName>> map;  // built on first use: ops register before main
  return map;
}
}  // namespace

std::atomic<const char*> last_kernel{""};

bool register_op(const char* op, std::vector<KernelName> names) {
  return tables().emplace(op, std::move(names)).second;
}

std::vector<std::string> op_names() {
  std::vector<std::string> ops;
  for (const auto& [op, names] : tables()) ops.push_back(op);
  return ops;
}

std::vector<std::string> kernel_names(const std::string& op) {
  const auto found = tables().find(op);
  if (found == tables().end()) throw std::invalid_argument("aoq has no op named " + op);
  std::vector<std::string> names;
  for (const KernelName& kernel : found->second)
    if (kernel.isa <= active_isa() && supported(kernel.isa)) names.push_back(kernel.name);
  return names;
}

}  // namespace aoq
