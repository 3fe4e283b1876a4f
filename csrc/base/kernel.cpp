#include "base/kernel.h"

#include <algorithm>
#include <map>
#include <stdexcept>

namespace aoq {
namespace {

std::vector<std::string>& ops() {
  static std::vector<std::string> names;
  return names;
}

std::map<std::string, std::vector<KernelName>>& tables() {
  static std::map<std::string, std::vector<KernelName>> map;  // built on first use: ops register before main
  return map;
}

const std::vector<KernelName>& table(const std::string& op) {
  const auto found = tables().find(op);
  if (found == tables().end()) throw std::invalid_argument("aoq has no op named " + op);
  return found->second;
}

}  // namespace

std::atomic<const char*> last_kernel{""};

bool register_op(const char* op, const std::vector<KernelName>& names) {
  ops().emplace_back(op);
  return register_kernels(op, names);
}

bool register_kernels(const char* name, const std::vector<KernelName>& names) {
  std::vector<KernelName>& rows = tables()[name];
  for (const KernelName& kernel : names)  // formats may share an op, and its kernels' names
    if (std::none_of(rows.begin(), rows.end(), [&](const auto& row) { return row.name == std::string(kernel.name); }))
      rows.push_back(kernel);
  return true;
}

std::vector<std::string> op_names() {
  std::vector<std::string> names = ops();
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> kernel_names(const std::string& op) {
  std::vector<std::string> names;
  for (const KernelName& kernel : table(op))
    if (allowed(features_of(kernel.isa))) names.push_back(kernel.name);
  return names;
}

std::string kernel_name(const std::string& op, int64_t m, Dtype x_dtype) {
  for (const KernelName& kernel : table(op))
    if (allowed(features_of(kernel.isa)) && (!kernel.takes || kernel.takes(m, x_dtype))) return kernel.name;
  throw std::invalid_argument("aoq has no kernel of " + op + " for these arguments");  // every table ends with ref
}

}  // namespace aoq
