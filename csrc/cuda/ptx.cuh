// The instructions that CUDA C++ has no name for, one function each. tests/cuda/simt/cuda/ptx.cuh says in plain C++
// what they do, and takes this file's place where tests run kernels without a GPU.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/words.h"

namespace aoq::ptx {
namespace {

// What a tensor core takes in 32 bits, the first one low: pairs of 16-bit floats, four signed bytes.
struct Bf16 {};
struct F16 {};
struct S8 {};

using U32x4 = Words<4>;

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Keeps a value in its register: the compiler would compute some anew at each use.
__device__ inline uint32_t kept(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ---- loads; kEarly: of a kernel that may start early, so not by the constant path (.nc), which ptxas takes to before
// wait_for_kernel_before

// The L2 policy of what is read once.
__device__ inline uint64_t evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Words of a constant that is read once: past L1, and the first to leave L2.
#define AOQ_LOAD_STREAM(count, type, names, at, policy_at, ...)                                               \
  template <bool kEarly>                                                                                      \
  __device__ inline void load_stream(Words<count>& v, const void* data, uint64_t policy) {                    \
    if constexpr (kEarly)                                                                                     \
      asm volatile("ld.global.L1::no_allocate.L2::cache_hint." type " " names ", [" at "], " policy_at ";"    \
                   : __VA_ARGS__                                                                              \
                   : "l"(data), "l"(policy));                                                                 \
    else                                                                                                      \
      asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint." type " " names ", [" at "], " policy_at ";" \
                   : __VA_ARGS__                                                                              \
                   : "l"(data), "l"(policy));                                                                 \
  }
AOQ_LOAD_STREAM(4, "v4.u32", "{%0, %1, %2, %3}", "%4", "%5", "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]),
                "=r"(v.word[3]))
AOQ_LOAD_STREAM(2, "v2.u32", "{%0, %1}", "%2", "%3", "=r"(v.word[0]), "=r"(v.word[1]))
AOQ_LOAD_STREAM(1, "u32", "%0", "%1", "%2", "=r"(v.word[0]))
#undef AOQ_LOAD_STREAM
template <int kCount, bool kEarly = false>
__device__ inline Words<kCount> load_stream(const void* data, uint64_t policy) {
  Words<kCount> v;
  load_stream<kEarly>(v, data, policy);
  return v;
}

// Four bytes of a constant whose neighbours are read soon.
template <bool kEarly = false>
__device__ inline uint32_t load_ahead(const void* data) {
  uint32_t v;
  if constexpr (kEarly)
    asm volatile("ld.global.L2::256B.u32 %0, [%1];" : "=r"(v) : "l"(data));
  else
    asm volatile("ld.global.nc.L2::256B.u32 %0, [%1];" : "=r"(v) : "l"(data));
  return v;
}

// Sixteen bytes of a constant.
__device__ inline U32x4 load_sixteen(const void* data) {
  U32x4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(data));
  return v;
}

// Words to memory that is aligned to all their bytes: one store, of which the compiler makes several.
__device__ inline void store_words(void* to, const Words<2>& v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]) : "memory");
}
__device__ inline void store_words(void* to, const Words<4>& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]),
               "r"(v.word[3])
               : "memory");
}

// Words of shared memory.
#define AOQ_LOAD_SHARED(count, type, names, at, ...)                                                              \
  __device__ inline void load_shared(Words<count>& v, const void* data) {                                         \
    asm volatile("ld.shared." type " " names ", [" at "];" : __VA_ARGS__ : "r"(shared_address(data)) : "memory"); \
  }
AOQ_LOAD_SHARED(4, "v4.u32", "{%0, %1, %2, %3}", "%4", "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]),
                "=r"(v.word[3]))
AOQ_LOAD_SHARED(2, "v2.u32", "{%0, %1}", "%2", "=r"(v.word[0]), "=r"(v.word[1]))
AOQ_LOAD_SHARED(1, "u32", "%0", "%1", "=r"(v.word[0]))
#undef AOQ_LOAD_SHARED
template <int kCount>
__device__ inline Words<kCount> load_shared(const void* data) {
  Words<kCount> v;
  load_shared(v, data);
  return v;
}

// Copies sixteen bytes to shared memory in the background: `bytes` of them (0 to 16) from `data`, then zeros.
__device__ inline void copy_async(void* shared, const void* data, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(data), "r"(bytes)
               : "memory");
}
// Four bytes, or as many zeros.
__device__ inline void copy_async_word(void* shared, const void* data, bool real) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(data),
               "r"(real ? 4 : 0)
               : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// This thread's copies since the last such call are one group; then all groups but the last kLeft have arrived.
__device__ inline void group_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ inline void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four 8x8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8 and gets of each matrix the
// pair 2 (l % 4), + 1 of row l / 4.
__device__ inline U32x4 load_matrices(const void* row) {
  U32x4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(shared_address(row))
               : "memory");
  return v;
}

// ---- arithmetic

// (a & b) | c
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t v;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

// (a & b) ^ c
__device__ inline uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t v;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

// Byte i of the result is byte (selector >> 4i & 7) of the eight bytes b:a.
__device__ inline uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
// The same of a alone; from 8 on, selector >> 4i & 15 stands for eight times the sign of the byte.
__device__ inline uint32_t signed_bytes_of(uint32_t a, uint32_t selector) {
  uint32_t v;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(v) : "r"(a), "r"(selector));
  return v;
}

// sum + the four signed bytes
__device__ inline int add_bytes(uint32_t bytes, int sum) { return __dp4a(static_cast<int>(bytes), 0x01010101, sum); }

// a * b + c in both halves, rounded once.
__device__ inline uint32_t fma_pair(Bf16, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}
__device__ inline uint32_t fma_pair(F16, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t v;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

__device__ inline float f16_to_f32(uint32_t low) {
  float v;
  asm("{.reg .b16 h, rest; mov.b32 {h, rest}, %1; cvt.f32.f16 %0, h;}" : "=f"(v) : "r"(low));
  return v;
}

// Half to even.
__device__ inline uint32_t f32_to_f16(float value) {
  uint32_t v;
  asm("{.reg .b16 h; cvt.rn.f16.f32 h, %1; cvt.u32.u16 %0, h;}" : "=r"(v) : "f"(value));
  return v;
}

// sum += a * b, a 16x16 and b 16x8 of 16-bit floats, sums in fp32. With g = lane / 4 and c = 2 (lane % 4), a lane holds
//   a[0] = a(g; c, c + 1), a[1] = a(g + 8; c, c + 1), a[2] = a(g; c + 8, c + 9), a[3] = a(g + 8; c + 8, c + 9),
//   b0 = b(c, c + 1; g), b1 = b(c + 8, c + 9; g),
//   sum = (g; c), (g; c + 1), (g + 8; c), (g + 8; c + 1).
#define AOQ_MMA_K16(type, name)                                                                                  \
  __device__ inline void multiply_k16(type, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                                   \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                   \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                 \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                         \
  }
AOQ_MMA_K16(Bf16, "bf16")
AOQ_MMA_K16(F16, "f16")
#undef AOQ_MMA_K16

// sum += a * b, a 16x32 and b 32x8 of signed bytes, exact in 32 bits. With g = lane / 4 and c = 4 (lane % 4), a lane
// holds
//   a[0] = a(g; c ..), a[1] = a(g + 8; c ..), a[2] = a(g; c + 16 ..), a[3] = a(g + 8; c + 16 ..), four along k each,
//   b0 = b(c ..; g), b1 = b(c + 16 ..; g), and sums as above.
__device__ inline void multiply_k32(S8, int32_t (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- between blocks: instructions of sm_90, nothing on others

#if __CUDA_ARCH__ >= 900
#define AOQ_SM90(...) asm volatile(__VA_ARGS__)
#else
#define AOQ_SM90(...)
#endif

// What a kernel before this one in the stream wrote, weights too, may be read from here on. Launched with the attribute
// ProgrammaticStreamSerialization, a kernel starts before that one has ended, and even where that one never says
// start_kernel_after, before what it wrote is sure to be seen.
__device__ inline void wait_for_kernel_before() { AOQ_SM90("griddepcontrol.wait;" :: : "memory"); }
// Fetches `bytes` from `data` on, both multiples of 16, into L2, which still sees what others write there.
__device__ inline void fetch(const void* data, int bytes, uint64_t policy) {
  AOQ_SM90("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(data), "r"(bytes),
           "l"(policy) : "memory");
}
// The same of the cache line that holds *data.
__device__ inline void fetch_line(const void* data) { asm volatile("prefetch.global.L2 [%0];" ::"l"(data) : "memory"); }
// The kernel after this one may start, up to its own wait.
__device__ inline void start_kernel_after() { AOQ_SM90("griddepcontrol.launch_dependents;" :: : "memory"); }

// All threads of all blocks of the cluster meet, and see what the others wrote to shared memory.
__device__ inline void cluster_barrier() {
  __syncwarp();  // the instructions are for whole warps
  AOQ_SM90("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" :: : "memory");
}
// All blocks of the cluster have come here, which is all that this says: what they have read of each other's shared
// memory they have used, so it may go. Orders nothing else.
__device__ inline void end_of_cluster() {
  __syncwarp();
  AOQ_SM90("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" :: : "memory");
}
// Reads the shared memory of block `rank` of the cluster, where this block has `shared`.
__device__ inline float load_cluster(const float* shared, uint32_t rank) {
  float v = 0;
  AOQ_SM90("{.reg .u32 at; mapa.shared::cluster.u32 at, %1, %2; ld.shared::cluster.f32 %0, [at];}" : "=f"(v) : "r"(
               shared_address(shared)),
           "r"(rank) : "memory");
  return v;
}
// The same of four floats, sixteen bytes that are aligned as such.
__device__ inline U32x4 load_cluster_four(const float* shared, uint32_t rank) {
  U32x4 v{};
  AOQ_SM90(
      "{.reg .u32 at; mapa.shared::cluster.u32 at, %4, %5; ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [at];}" : "=r"(
          v.word[0]),
      "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3]) : "r"(shared_address(shared)), "r"(rank) : "memory");
  return v;
}
#undef AOQ_SM90

}  // namespace
}  // namespace aoq::ptx
