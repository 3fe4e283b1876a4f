// csrc/core/ptx.cuh in plain C++, from what PTX's manual says of each instruction: tests compile kernels with this file
// in the other's place. A warp's threads meet where the instruction is one of the whole warp.
#pragma once
#include <cuda_runtime.h>

#include "core/dtype.h"

namespace aoq::ptx {
namespace {

struct Bf16 {};
struct F16 {};

struct U32x4 {
  uint32_t word[4];
};

inline char* shared_memory() { return simt::block->shared.data(); }
inline uint32_t kept(uint32_t value) { return value; }
inline uint64_t evict_first() { return 0; }

template <class T>
T load(const void* data) {
  if (reinterpret_cast<uintptr_t>(data) % sizeof(T)) throw std::runtime_error("a load that is not aligned");
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}
inline U32x4 load_stream(const void* data, uint64_t) { return load<U32x4>(data); }
inline uint32_t load_ahead(const void* data) { return load<uint32_t>(data); }

inline void copy_async(void* shared, const void* data, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(data) % 16)
    throw std::runtime_error("a copy that is not aligned");
  std::memset(shared, 0, 16);
  std::memcpy(shared, data, static_cast<size_t>(bytes));
}
inline void wait_for_copies() {}

inline unsigned lane() { return threadIdx.x % warpSize; }

inline U32x4 load_matrices(const void* row) {
  uint64_t rows[warpSize];
  simt::meet(~0u, reinterpret_cast<uintptr_t>(row), rows);
  U32x4 value;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    const auto* at = reinterpret_cast<const char*>(rows[8 * matrix + lane() / 4]);
    load<U32x4>(at);  // a row is 16 bytes, aligned
    value.word[matrix] = load<uint32_t>(at + 4 * (lane() % 4));
  }
  __syncwarp();  // shared memory may change from here on
  return value;
}

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }

inline uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return value;
}

inline float half_of(Bf16, uint32_t pair, int half) { return bf16_to_float(static_cast<uint16_t>(pair >> 16 * half)); }
inline float half_of(F16, uint32_t pair, int half) { return f16_to_float(static_cast<uint16_t>(pair >> 16 * half)); }
inline uint32_t round_half(Bf16, float value) { return float_to_bf16(value); }
inline uint32_t round_half(F16, float value) { return float_to_f16(value); }

template <class X>
uint32_t fma_pair(X x, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t pair = 0;
  for (int i = 0; i < 2; ++i)
    pair |= round_half(x, std::fma(half_of(x, a, i), half_of(x, b, i), half_of(x, c, i))) << 16 * i;
  return pair;
}

inline float f16_to_f32(uint32_t low) { return f16_to_float(static_cast<uint16_t>(low)); }

inline uint32_t f32_to_f16(float value) { return float_to_f16(value); }

// Products are exact and so are their sums, rounded once to fp32.
template <int kK, class X>
void multiply(X x, float (&sum)[4], const uint32_t* a, const uint32_t* b) {
  struct Operands {
    uint32_t a[4], b[2];
  } mine{};
  std::memcpy(mine.a, a, sizeof(uint32_t) * kK / 4);
  std::memcpy(mine.b, b, sizeof(uint32_t) * kK / 8);
  uint64_t all[warpSize];
  simt::meet(~0u, reinterpret_cast<uintptr_t>(&mine), all);
  auto of = [&](int lane) { return reinterpret_cast<const Operands*>(all[lane]); };
  for (int i = 0; i < 4; ++i) {
    const int row = static_cast<int>(lane()) / 4 + 8 * (i / 2), column = 2 * static_cast<int>(lane() % 4) + i % 2;
    double total = sum[i];
    for (int k = 0; k < kK; ++k) {
      const uint32_t a_pair = of(4 * (row % 8) + k % 8 / 2)->a[row / 8 + 2 * (k / 8)];
      const uint32_t b_pair = of(4 * column + k % 8 / 2)->b[k / 8];
      total += static_cast<double>(half_of(x, a_pair, k % 2)) * half_of(x, b_pair, k % 2);
    }
    sum[i] = static_cast<float>(total);
  }
  __syncwarp();  // the others have read mine
}
template <class X>
void multiply_k16(X x, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  multiply<16>(x, sum, a, b);
}
template <class X>
void multiply_k8(X x, float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  const uint32_t a[2] = {a0, a1};
  multiply<8>(x, sum, a, &b0);
}

inline void wait_for_kernel_before() {}
inline void start_kernel_after() {}
inline void cluster_barrier() { simt::cluster_barrier(); }
inline float load_cluster(const float* shared, uint32_t rank) {
  const auto offset = reinterpret_cast<const char*>(shared) - simt::block->shared.data();
  return load<float>(simt::cluster->blocks.at(rank).shared.data() + offset);
}

}  // namespace
}  // namespace aoq::ptx
