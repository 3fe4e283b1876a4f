// 32-bit words that CUDA kernels load and store together where they are one, two or four.
#pragma once
#include <cstdint>

namespace aoq {
namespace {

template <int kCount>
struct alignas(kCount % 2 ? 4 : 4 * kCount) Words {
  uint32_t word[kCount];
};

}  // namespace
}  // namespace aoq
