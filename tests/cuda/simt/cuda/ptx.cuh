// csrc/cuda/ptx.cuh in plain C++, from what PTX's manual says of each instruction: tests compile kernels with this file
// in the other's place. A warp's threads meet where the instruction is one of the whole warp.
#pragma once
#include <cuda_runtime.h>

#include "base/dtype.h"
#include "cuda/words.h"

namespace aoq::ptx {
namespace {

struct Bf16 {};
struct F16 {};
struct S8 {};

using U32x4 = Words<4>;

inline char* shared_memory() { return simt::block->shared(); }
inline uint32_t kept(uint32_t value) { return value; }
inline uint64_t evict_first() { return 0; }

template <class T>
T load(const void* data) {
  if (reinterpret_cast<uintptr_t>(data) % sizeof(T)) throw std::runtime_error("a load that is not aligned");
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}
template <class T>
T load_global(const void* data) {
  simt::read_global();
  return load<T>(data);
}
template <int kCount, bool kEarly = false>
Words<kCount> load_stream(const void* data, uint64_t) {
  return load_global<Words<kCount>>(data);
}
template <bool kEarly = false>
uint32_t load_ahead(const void* data) {
  return load_global<uint32_t>(data);
}

inline U32x4 load_sixteen(const void* data) { return load_global<U32x4>(data); }
template <int kCount>
void store_words(void* to, const Words<kCount>& v) {
  simt::expect(reinterpret_cast<uintptr_t>(to) % sizeof(v) == 0, "a store that is not aligned");
  std::memcpy(to, &v, sizeof(v));
}
template <int kCount>
Words<kCount> load_shared(const void* data) {
  return load<Words<kCount>>(data);
}

// A copy arrives when its thread waits for it, and not before.
inline void copy_async(void* shared, const void* data, unsigned size, unsigned bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % size || reinterpret_cast<uintptr_t>(data) % size)
    throw std::runtime_error("a copy that is not aligned");
  simt::read_global();
  simt::fiber->copies.push_back({shared, data, size, bytes});
}
inline void copy_async(void* shared, const void* data, int bytes) {
  copy_async(shared, data, 16, static_cast<unsigned>(bytes));
}
inline void copy_async_word(void* shared, const void* data, bool real) { copy_async(shared, data, 4, real ? 4 : 0); }
inline void group_copies() { simt::fiber->groups.push_back(simt::fiber->copies.size()); }
template <int kLeft>
void wait_for_groups() {
  auto& groups = simt::fiber->groups;
  if (groups.size() > kLeft) simt::fiber->arrive(groups[groups.size() - 1 - kLeft]);
}
inline void wait_for_copies() { simt::fiber->arrive(simt::fiber->copies.size()); }

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

inline uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) { return (a & b) ^ c; }

inline uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return value;
}

inline uint32_t signed_bytes_of(uint32_t a, uint32_t selector) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = a >> 8 * (selector >> 4 * i & 3) & 255;
    value |= (selector >> 4 * i & 8 ? byte >> 7 ? 255 : 0 : byte) << 8 * i;
  }
  return value;
}

inline int add_bytes(uint32_t bytes, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(bytes >> 8 * i);
  return sum;
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

// What lane `row` and `column` of the fragments give each other. A register holds 4 / kBytes values along k, and four
// lanes hold the registers of sixteen bytes of k.
template <class X>
struct Values;
template <class X>
struct Halves {
  using Sum = float;
  static constexpr int kCount = 2;
  static double at(uint32_t pair, int i) { return half_of(X{}, pair, i); }
};
template <>
struct Values<Bf16> : Halves<Bf16> {};
template <>
struct Values<F16> : Halves<F16> {};
template <>
struct Values<S8> {
  using Sum = int32_t;
  static constexpr int kCount = 4;
  static double at(uint32_t quad, int i) { return static_cast<int8_t>(quad >> 8 * i); }
};

// Products are exact and so are their sums, rounded once to fp32.
template <class X, class Sum>
void multiply(X, Sum (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using V = Values<X>;
  constexpr int kK = 8 * V::kCount;
  struct Operands {
    double a[4][V::kCount], b[2][V::kCount];
  } mine;
  const uint32_t b[2] = {b0, b1};
  for (int i = 0; i < V::kCount; ++i) {
    for (int r = 0; r < 4; ++r) mine.a[r][i] = V::at(a[r], i);
    for (int r = 0; r < 2; ++r) mine.b[r][i] = V::at(b[r], i);
  }
  uint64_t all[warpSize];
  simt::meet(~0u, reinterpret_cast<uintptr_t>(&mine), all);
  auto of = [&](int lane) { return reinterpret_cast<const Operands*>(all[lane]); };
  for (int i = 0; i < 4; ++i) {
    const int row = static_cast<int>(lane()) / 4 + 8 * (i / 2), column = 2 * static_cast<int>(lane() % 4) + i % 2;
    double total = sum[i];
    for (int half = 0; half < 2; ++half)
      for (int part = 0; part < 4; ++part)
        for (int k = 0; k < kK / 8; ++k)
          total += of(4 * (row % 8) + part)->a[row / 8 + 2 * half][k] * of(4 * column + part)->b[half][k];
    sum[i] = static_cast<Sum>(total);
  }
  __syncwarp();  // the others have read mine
}
template <class X>
void multiply_k16(X x, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply(x, sum, a, b0, b1);
}
inline void multiply_k32(S8 x, int32_t (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply(x, sum, a, b0, b1);
}

inline void wait_for_kernel_before() { simt::fiber->waited = true; }
// What they touch has to be there.
inline void fetch(const void* data, int bytes, uint64_t) {
  simt::expect(bytes > 0 && bytes % 16 == 0, "fetch: bytes");
  load<U32x4>(data);
  load<U32x4>(static_cast<const char*>(data) + bytes - 16);
}
inline void fetch_line(const void* data) { load<char>(data); }
inline void start_kernel_after() {}
inline void cluster_barrier() {
  simt::expect(simt::cluster->blocks.size() > 1, "a cluster's barrier, which takes a microsecond, for a block alone");
  simt::cluster_barrier();
}
inline void end_of_cluster() { cluster_barrier(); }
template <class T>
T load_of_block(const float* shared, uint32_t rank) {
  simt::expect(simt::cluster->barriers, "a read of a block that may not have begun");
  bool lives = false;
  for (const simt::Fiber& thread : simt::cluster->blocks.at(rank).fibers) lives = lives || !thread.done;
  simt::expect(lives, "a read of a block that has ended");
  const auto offset = reinterpret_cast<const char*>(shared) - simt::block->shared();
  return load<T>(simt::cluster->blocks.at(rank).shared() + offset);
}
inline float load_cluster(const float* shared, uint32_t rank) { return load_of_block<float>(shared, rank); }
inline U32x4 load_cluster_four(const float* shared, uint32_t rank) {
  simt::expect(reinterpret_cast<uintptr_t>(shared) % 16 == 0, "sixteen bytes that are not aligned");
  return load_of_block<U32x4>(shared, rank);
}

}  // namespace
}  // namespace aoq::ptx
