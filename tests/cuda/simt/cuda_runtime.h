// CUDA's threads on the CPU, for tests. A .cu file that is compiled as plain C++ with this header before CUDA's runs
// its kernels here: blocks one after the other, the threads of a block as fibers that take turns at shuffles and
// barriers, in another order in each cluster; the blocks of a cluster side by side. Launches that a device would refuse
// throw. No launch syntax (kernels are launched with cudaLaunchKernelEx), no instructions in assembler (cuda/ptx.cuh is
// replaced too), and shared memory in a cluster only from ptx::shared_memory.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // blocks take turns
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeNone,
  cudaLaunchAttributeClusterDimension,
  cudaLaunchAttributeProgrammaticStreamSerialization
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
  } val;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

#if !defined(SIMT_SHARED_BYTES)
#define SIMT_SHARED_BYTES (227 * 1024)  // what a block of the device may have: Hopper's
#endif

namespace simt {
// The dynamic shared memory that each kernel asked for; without, it is as much as needs no asking.
inline std::map<const void*, size_t> allowed;

inline size_t allowed_bytes(const void* kernel) {
  const auto found = allowed.find(kernel);
  return found == allowed.end() ? 48 * 1024 : found->second;
}
}  // namespace simt

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes > SIMT_SHARED_BYTES) throw std::runtime_error("more shared memory than a block may have");
  const auto [found, first] = simt::allowed.emplace(reinterpret_cast<const void*>(kernel), bytes);
  // Between this and the launch another thread may set what its own plan takes.
  if (!first && found->second != static_cast<size_t>(bytes))
    throw std::runtime_error("a kernel's limit of shared memory that is not the same in each call");
  return cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace simt {

constexpr size_t kStackBytes = 65536;

// A copy to shared memory that has been asked for.
struct Copy {
  void* to;
  const void* from;
  unsigned size, bytes;  // bytes from `from`, the rest of size as zeros
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  bool done = false;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // how many copies had been asked for at the end of each
  size_t arrived = 0;
  bool waited = false;  // for the kernel before this one

  void arrive(size_t count) {
    for (; arrived < count; ++arrived) {
      const Copy& copy = copies[arrived];
      std::memset(copy.to, 0, copy.size);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
};

// Where the threads of a mask meet and leave their values for each other.
struct Meeting {
  uint64_t value[warpSize];
  unsigned arrived = 0, left = 0;
};

struct alignas(1024) Kilobyte {
  char bytes[1024];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> meetings;  // [warp][lowest lane of the mask]: a thread is in one at a time
  std::vector<Kilobyte> memory;
  char* shared() { return memory.data()->bytes; }
  dim3 index;
  unsigned waiting = 0, barriers = 0;
};

struct Cluster {
  std::vector<Block> blocks;
  std::function<void()> body;
  ucontext_t scheduler;
  unsigned waiting = 0, barriers = 0;
  bool progress = false;
};
inline bool programmatic;  // whether the last kernel was launched so
inline Cluster* cluster;
inline Block* block;
inline Fiber* fiber;

inline void expect(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

// Before a thread reads what any kernel may have written.
inline void read_global() {
  expect(!programmatic || fiber->waited, "a read before the kernel before this one has ended");
}

inline void yield() { swapcontext(&fiber->context, &cluster->scheduler); }

inline void enter() {
  cluster->body();
  fiber->done = cluster->progress = true;
}

// Which of `count` threads is the `turn`th: what no barrier puts in order must not depend on it.
inline unsigned thread_of(unsigned turn, unsigned count, unsigned order) {
  if (order % 3 == 0) return turn;
  if (order % 3 == 1) return count - 1 - turn;
  return turn * 37 % count;  // 37 divides no block's size
}

inline void run_cluster() {
  static unsigned order = 0;
  ++order;
  for (Block& one : cluster->blocks)
    for (Fiber& thread : one.fibers) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = kStackBytes;
      thread.context.uc_link = &cluster->scheduler;
      thread.done = false;
      thread.copies.clear();
      thread.groups.clear();
      thread.arrived = 0;
      thread.waited = false;
      makecontext(&thread.context, enter, 0);
    }
  for (bool live = true; live;) {
    live = cluster->progress = false;
    for (Block& one : cluster->blocks)
      for (unsigned turn = 0; turn < one.fibers.size(); ++turn) {
        const unsigned i = thread_of(turn, static_cast<unsigned>(one.fibers.size()), order);
        fiber = &one.fibers[i];
        if (fiber->done) continue;
        live = true;
        block = &one;
        blockIdx = one.index;
        threadIdx = dim3(i, 0, 0);
        swapcontext(&cluster->scheduler, &fiber->context);
      }
    if (live && !cluster->progress) throw std::runtime_error("threads wait for each other forever");
  }
}

inline void barrier() {
  const unsigned before = block->barriers;
  cluster->progress = true;
  if (++block->waiting == blockDim.x) {
    block->waiting = 0;
    ++block->barriers;
  }
  while (block->barriers == before) yield();
}

inline void cluster_barrier() {
  const unsigned before = cluster->barriers;
  cluster->progress = true;
  if (++cluster->waiting == blockDim.x * cluster->blocks.size()) {
    cluster->waiting = 0;
    ++cluster->barriers;
  }
  while (cluster->barriers == before) yield();
}

// Every thread of the mask gives a value and gets those of all.
inline void meet(unsigned mask, uint64_t value, uint64_t (&all)[warpSize]) {
  const unsigned lane = threadIdx.x % warpSize, bit = 1u << lane;
  if (!(mask & bit)) throw std::runtime_error("a thread that is not in its own mask");
  Meeting& meeting = block->meetings[threadIdx.x / warpSize * warpSize + static_cast<unsigned>(__builtin_ctz(mask))];
  while (meeting.left) yield();  // the last meeting here is not over
  meeting.value[lane] = value;
  meeting.arrived |= bit;
  cluster->progress = true;
  while (meeting.arrived != mask) yield();
  std::memcpy(all, meeting.value, sizeof(all));
  meeting.left |= bit;
  cluster->progress = true;
  if (meeting.left == mask) meeting.arrived = meeting.left = 0;
}

template <class T>
T exchange(unsigned mask, T value, unsigned from, bool valid) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0, all[warpSize];
  std::memcpy(&word, &value, sizeof(T));
  meet(mask, word, all);
  if (valid) std::memcpy(&value, &all[from], sizeof(T));
  return value;
}

}  // namespace simt

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  unsigned blocks = 1;
  simt::programmatic = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const auto& [id, val] = config->attrs[i];
    if (id == cudaLaunchAttributeClusterDimension) blocks = val.clusterDim.x;
    if (id == cudaLaunchAttributeProgrammaticStreamSerialization)
      simt::programmatic = val.programmaticStreamSerializationAllowed != 0;
  }
  if (gridDim.x % blocks || blocks > 8) throw std::runtime_error("a grid that is not whole clusters of at most 8");
  const unsigned threads = blockDim.x;
  if (!gridDim.x || !gridDim.y || !gridDim.z || gridDim.x >> 31 || gridDim.y > 65535 || gridDim.z > 65535)
    throw std::runtime_error("a grid that no device launches");
  if (!threads || threads > 1024 || threads % 37 == 0 || blockDim.y != 1 || blockDim.z != 1)
    throw std::runtime_error("a block that no device launches, or the emulator does not");
  if (config->dynamicSmemBytes > simt::allowed_bytes(reinterpret_cast<const void*>(kernel)))
    throw std::runtime_error("more shared memory than the kernel asked for");
  simt::Cluster cluster;
  cluster.blocks.resize(blocks);
  for (simt::Block& block : cluster.blocks) {
    block.fibers.resize(threads);
    block.meetings.resize((threads + warpSize - 1) / warpSize * warpSize);
    block.memory.resize((config->dynamicSmemBytes + 1023) / 1024);
  }
  cluster.body = [&] { kernel(arguments...); };
  simt::cluster = &cluster;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; x += blocks) {
        for (unsigned i = 0; i < blocks; ++i) {
          cluster.blocks[i].index = dim3(x + i, y, z);
          for (auto& kilobyte : cluster.blocks[i].memory)
            std::memset(kilobyte.bytes, 0xff, 1024);  // NaN, if it is read
        }
        simt::run_cluster();
      }
  return cudaSuccess;
}

inline void __syncthreads() { simt::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::exchange(mask, 0, 0, false); }

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = warpSize) {
  const unsigned lane = threadIdx.x % warpSize, first = lane - lane % width;
  return simt::exchange(mask, value, first + static_cast<unsigned>(from) % width, true);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const unsigned lane = threadIdx.x % warpSize;
  return simt::exchange(mask, value, lane + delta, lane % width + delta < static_cast<unsigned>(width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const unsigned lane = threadIdx.x % warpSize, from = lane ^ static_cast<unsigned>(bits);
  return simt::exchange(mask, value, from, from / width <= lane / width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  uint64_t all[warpSize];
  simt::meet(mask, predicate != 0, all);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < warpSize; ++lane)
    if (mask >> lane & 1 && all[lane]) ballot |= 1u << lane;
  return ballot;
}

inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
