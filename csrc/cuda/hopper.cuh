// The instructions of sm_90a alone, one function each: bulk tensor copies (TMA), barriers that count their bytes, and
// wgmma. tests/cuda/simt/cuda/hopper.cuh says in plain C++ what they do, and takes this file's place where tests run
// kernels without a GPU.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>

#include "cuda/ptx.cuh"
#include "cuda/wgmma.h"

namespace aoq::hopper {
namespace {

// ---- tensors in memory, as the copy engine sees them: made on the host, passed by value as __grid_constant__

using TensorMap = CUtensorMap;

// The driver's function, found at run time so that nothing links to the driver.
inline auto tensor_map_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !found)
    throw std::runtime_error("aoq: CUDA's driver has no cuTensorMapEncodeTiled; it must be of CUDA 12 or later");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

// [rows][columns] of elements of `element_bytes` (1, 2 or 4), rows of whole sixteen bytes, `row_bytes` apart, data
// aligned to 16 bytes; read in boxes of box_rows x box_columns, what lies outside as zeros. With `swizzle`, rows of a
// box are 128 bytes that lie where wgmma reads them without bank conflicts: cuda/wgmma.h.
inline TensorMap tensor_map(const void* data, int element_bytes, int64_t rows, int64_t columns, int64_t row_bytes,
                            int box_rows, int box_columns, bool swizzle) {
  static const auto encode = tensor_map_encoder();
  const auto type = element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                    : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                         : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)}, step[2] = {1, 1};
  TensorMap map{};
  const CUresult encoded =
      encode(&map, type, 2, const_cast<void*>(data), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (encoded != CUDA_SUCCESS) throw std::runtime_error("aoq: cuTensorMapEncodeTiled refused a tensor");
  return map;
}

// The block's dynamic shared memory from a multiple of 1024 on: ask for 1023 bytes more.
__device__ inline char* shared_memory() {
  char* const memory = ptx::shared_memory();
  return memory + (-ptx::shared_address(memory) & 1023);
}

// ---- barriers in shared memory: a phase ends when `count` arrivals and all expected bytes are in

using Barrier = uint64_t;

__device__ inline void init(Barrier* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(count) : "memory");
}
// After all inits and before the threads meet.
__device__ inline void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx::shared_address(barrier)) : "memory");
}
// Arrives, and lets the phase wait for `bytes` more.
__device__ inline void arrive_expecting(Barrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of a phase of this parity: 0 for the first. Of a new barrier, phase 1 counts as ended.
__device__ inline void wait(Barrier* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(ptx::shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// `threads` threads, whole warps, meet at barrier `id` (1 to 15).
__device__ inline void meet(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A warpgroup gives registers back, or takes of those that others gave: all its threads together, to a multiple of 8.
template <int kRegisters>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- copies to shared memory by one thread, in the background; the barrier gets the bytes

__device__ inline void copy_box(void* shared, const TensorMap& map, int column, int row, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          ptx::shared_address(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(ptx::shared_address(barrier))
      : "memory");
}
// Fetches a box into L2, which still sees what others write there.
__device__ inline void fetch_box(const TensorMap& map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row)
               : "memory");
}
// Both addresses and the bytes are multiples of 16.
__device__ inline void copy_bytes(void* shared, const void* data, uint32_t bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   ptx::shared_address(shared)),
               "l"(data), "r"(bytes), "r"(ptx::shared_address(barrier))
               : "memory");
}

// ---- wgmma: four warps, sum += a * b, a 64 rows of 32 bytes in registers, b in shared memory, sums in fp32 or exact

// What says where b is: cuda/wgmma.h.
__device__ inline uint64_t descriptor(const void* b) { return wgmma::descriptor(ptx::shared_address(b)); }

// Between writes to registers that wgmma reads or adds to and the first wgmma.
__device__ inline void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All groups but the last kPending are over; their registers are free, their sums complete.
template <int kPending>
__device__ inline void finish() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler takes sums for known once a wgmma is issued: no use of them moves before this.
template <int kCount>
__device__ inline void settle(float (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}
template <int kCount>
__device__ inline void settle(int32_t (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(sum[i])::"memory");
}

// A warp of the four holds rows 16w to 16w + 15 of a, in the order of mma.m16n8k16 or m16n8k32 (cuda/ptx.cuh), and of
// sum, in sum_at's. Starts from 0 unless `add`.
#define AOQ_8(kind, i)                                                                                    \
  kind(sum[i]), kind(sum[i + 1]), kind(sum[i + 2]), kind(sum[i + 3]), kind(sum[i + 4]), kind(sum[i + 5]), \
      kind(sum[i + 6]), kind(sum[i + 7])
#define AOQ_16(kind, i) AOQ_8(kind, i), AOQ_8(kind, i + 8)
#define AOQ_32(kind, i) AOQ_16(kind, i), AOQ_16(kind, i + 16)
#define AOQ_64(kind, i) AOQ_32(kind, i), AOQ_32(kind, i + 32)
#define AOQ_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define AOQ_NAMES_32 AOQ_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AOQ_NAMES_64                                                                   \
  AOQ_NAMES_32                                                                         \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AOQ_WGMMA(type, Sum, kind, columns, shape, rest, count, a0, a1, a2, a3, at, flag)                 \
  __device__ inline void multiply(type, Sum(&sum)[count], const uint32_t (&a)[4], uint64_t b, bool add) { \
    asm volatile("{.reg .pred add; setp.ne.b32 add, " flag                                                \
                 ", 0;\n"                                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" columns shape " {" AOQ_NAMES_##count                 \
                 "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " at ", add" rest ";}"                             \
                 : AOQ_##count(kind, 0)                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));       \
  }
#define AOQ_WGMMAS(type, Sum, kind, shape, rest)                                              \
  AOQ_WGMMA(type, Sum, kind, "32", shape, rest, 16, "%16", "%17", "%18", "%19", "%20", "%21") \
  AOQ_WGMMA(type, Sum, kind, "64", shape, rest, 32, "%32", "%33", "%34", "%35", "%36", "%37") \
  AOQ_WGMMA(type, Sum, kind, "128", shape, rest, 64, "%64", "%65", "%66", "%67", "%68", "%69")
AOQ_WGMMAS(ptx::Bf16, float, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0")
AOQ_WGMMAS(ptx::F16, float, "+f", "k16.f32.f16.f16", ", 1, 1, 0")
AOQ_WGMMAS(ptx::S8, int32_t, "+r", "k32.s32.s8.s8", "")
#undef AOQ_WGMMAS
#undef AOQ_WGMMA
#undef AOQ_NAMES_64
#undef AOQ_NAMES_32
#undef AOQ_NAMES_16
#undef AOQ_64
#undef AOQ_32
#undef AOQ_16
#undef AOQ_8

}  // namespace
}  // namespace aoq::hopper
