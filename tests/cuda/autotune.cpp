// autotune/autotune.h as test_autotune.py calls it, with its own clock.
#include "autotune/autotune.h"

#include <cstdio>
#include <stdexcept>

using namespace aoq;

extern "C" {

// fits: bit i says that config i does. time: ns of a config, below 0 to fail.
int tuned(const char* key, int configs, uint64_t fits, bool may_time, double (*time)(int)) {
  const TunedProblem problem{key, [=](int config) { return fits >> config & 1; }, configs};
  auto nanoseconds = [=](int config) {
    const double ns = time(config);
    if (ns < 0) throw std::runtime_error("out of memory");
    return ns;
  };
  return tuned_config(problem, [=] { return may_time; }, nanoseconds);
}

bool set_mode(const char* value) {
  try {
    set_autotune(value);
  } catch (const std::invalid_argument&) {
    return false;
  }
  return true;
}

int mode() { return static_cast<int>(autotune()); }

void key_of(const char* op, const PackedMm* mm, const char* codes, char* out, size_t size) {
  std::snprintf(out, size, "%s", tuned_key(op, *mm, codes, "a device").c_str());
}

}  // extern "C"
