#include "cuda/pdl.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace aoq {
namespace {

bool parse(const std::string& wanted, const char* source) {
  if (wanted.empty() || wanted == "1") return true;
  if (wanted == "0") return false;
  throw std::invalid_argument(source + ("=" + wanted) + ": expected 0 or 1");
}

std::atomic<bool>& allowed() {
  static std::atomic<bool> allowed{[] {
    const char* wanted = std::getenv("AOQ_PDL");
    return parse(wanted ? wanted : "", "AOQ_PDL");
  }()};
  return allowed;
}

}  // namespace

bool pdl() { return allowed().load(std::memory_order_relaxed); }

void set_pdl(const std::string& value) { allowed().store(parse(value, "set_pdl")); }

}  // namespace aoq
