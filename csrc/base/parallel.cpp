#include "base/parallel.h"

#include <cstdlib>
#include <new>

#include <torch/csrc/stable/ops.h>

namespace aoq {

void parallel_for(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= grain) {
    if (count > 0) body(context, 0, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t num_threads() { return torch::stable::get_num_threads(); }

void* allocate(int64_t bytes) {
  if (bytes < 0) throw std::bad_alloc();
  // A multiple of 64, and never 0.
  void* memory = std::aligned_alloc(64, (static_cast<size_t>(bytes > 0 ? bytes : 1) + 63) / 64 * 64);
  if (!memory) throw std::bad_alloc();
  return memory;
}

void release(void* memory) { std::free(memory); }

}  // namespace aoq
