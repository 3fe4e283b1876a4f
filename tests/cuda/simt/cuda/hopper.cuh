// csrc/cuda/hopper.cuh in plain C++, from what PTX's manual says of each instruction: tests compile kernels with this
// file in the other's place. What runs in the background is done as late as it may be, copies when a thread waits for
// their barrier and products when a warp waits for them, so that a kernel that forgets to wait gets wrong results.
#pragma once
#include <cuda_runtime.h>

#include <map>
#include <vector>

#include "cuda/ptx.cuh"
#include "cuda/wgmma.h"

namespace aoq::hopper {
namespace {

using simt::expect;

struct TensorMap {
  const char* data;
  int element_bytes;
  int64_t rows, columns, row_bytes;
  int box_rows, box_columns;
  bool swizzle;
};

inline TensorMap tensor_map(const void* data, int element_bytes, int64_t rows, int64_t columns, int64_t row_bytes,
                            int box_rows, int box_columns, bool swizzle) {
  expect(reinterpret_cast<uintptr_t>(data) % 16 == 0, "tensor_map: data is not aligned");
  expect(row_bytes % 16 == 0 && row_bytes < int64_t{1} << 40 && row_bytes >= columns * element_bytes,
         "tensor_map: row_bytes");
  expect(columns * element_bytes % 16 == 0, "tensor_map: rows are whole sixteen bytes");
  expect(rows > 0 && columns > 0 && rows <= int64_t{1} << 32 && columns <= int64_t{1} << 32, "tensor_map: size");
  expect(box_rows > 0 && box_rows <= 256 && box_columns > 0 && box_columns <= 256, "tensor_map: box");
  expect(box_columns * element_bytes % 16 == 0, "tensor_map: a box's rows are multiples of 16 bytes");
  expect(!swizzle || box_columns * element_bytes <= 128, "tensor_map: a swizzled box's rows are at most 128 bytes");
  return {static_cast<const char*>(data), element_bytes, rows, columns, row_bytes, box_rows, box_columns, swizzle};
}

inline char* shared_memory() { return ptx::shared_memory(); }  // aligned to 1024 here

// ---- barriers

using Barrier = uint64_t;

struct BarrierState {
  uint32_t count = 0, arrived = 0, phase = 0;
  int64_t bytes = 0;
  std::vector<std::function<int64_t()>> copies;  // each returns its bytes
};
inline std::map<const Barrier*, BarrierState> barriers;

inline void init(Barrier* barrier, uint32_t count) {
  barriers[barrier] = {};
  barriers[barrier].count = count;
}
inline void fence_init() {}
inline void end_phase(BarrierState& state) {
  simt::cluster->progress = true;
  if (state.arrived < state.count || state.bytes) return;
  expect(state.arrived == state.count, "more arrivals than a barrier counts");
  state.arrived = 0;
  ++state.phase;
}
inline void arrive(Barrier* barrier) {
  BarrierState& state = barriers.at(barrier);
  ++state.arrived;
  end_phase(state);
}
inline void arrive_expecting(Barrier* barrier, uint32_t bytes) {
  barriers.at(barrier).bytes += bytes;
  arrive(barrier);
}
inline void wait(Barrier* barrier, uint32_t parity) {
  BarrierState& state = barriers.at(barrier);
  while (state.phase % 2 == parity) {
    for (const auto& copy : state.copies) state.bytes -= copy();
    const bool arrived = !state.copies.empty();
    state.copies.clear();
    if (arrived) end_phase(state);
    if (state.phase % 2 == parity) simt::yield();
  }
}

struct Meeting {
  int waiting = 0;
  unsigned times = 0;
};
inline std::map<std::pair<const simt::Block*, int>, Meeting> meetings;
inline void meet(int id, int threads) {
  Meeting& meeting = meetings[{simt::block, id}];
  const unsigned before = meeting.times;
  simt::cluster->progress = true;
  if (++meeting.waiting == threads) {
    meeting.waiting = 0;
    ++meeting.times;
  }
  while (meeting.times == before) simt::yield();
}

template <int kRegisters>
void shrink_registers() {}
template <int kRegisters>
void grow_registers() {}

// ---- copies

inline void fetch_box(const TensorMap&, int, int) {}
inline void copy_box(void* shared, const TensorMap& map, int column, int row, Barrier* barrier) {
  simt::read_global();
  expect(reinterpret_cast<uintptr_t>(shared) % (map.swizzle ? wgmma::kAlignment : 128) == 0,
         "copy_box: shared is not aligned");
  barriers.at(barrier).copies.push_back([=] {
    for (int r = 0; r < map.box_rows; ++r)
      for (int c = 0; c < map.box_columns; ++c) {
        const auto plain =
            reinterpret_cast<uintptr_t>(shared) + static_cast<uintptr_t>((r * map.box_columns + c) * map.element_bytes);
        auto* const to = reinterpret_cast<char*>(map.swizzle ? wgmma::swizzled(plain) : plain);
        const int64_t from_row = row + int64_t{r}, from_column = column + int64_t{c};
        const bool inside = from_row >= 0 && from_row < map.rows && from_column >= 0 && from_column < map.columns;
        if (inside)
          std::memcpy(to, map.data + from_row * map.row_bytes + from_column * map.element_bytes,
                      static_cast<size_t>(map.element_bytes));
        else
          std::memset(to, 0, static_cast<size_t>(map.element_bytes));
      }
    return int64_t{map.box_rows} * map.box_columns * map.element_bytes;
  });
}
inline void copy_bytes(void* shared, const void* data, uint32_t bytes, Barrier* barrier) {
  expect((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(data) | bytes) % 16 == 0,
         "copy_bytes: not aligned");
  simt::read_global();
  barriers.at(barrier).copies.push_back([=] {
    std::memcpy(shared, data, bytes);
    return int64_t{bytes};
  });
}

// ---- wgmma

struct Product {
  int columns;
  void* sum;  // where this thread has its share of the operands; read when the product is done
  const uint32_t* a;
  uint64_t b;
  bool add;
  void (*run)(const Product& mine, const std::vector<const Product*>& warp);
};
struct Products {
  std::vector<std::vector<Product>> groups;
  std::vector<Product> open;
  bool fenced = false;  // since registers were last free to be written
};
inline std::map<const simt::Fiber*, Products> products;  // of each thread

inline uint64_t descriptor(const void* b) {
  expect(reinterpret_cast<uintptr_t>(b) % wgmma::kAlignment == 0, "wgmma: b is not aligned");
  return reinterpret_cast<uintptr_t>(b) / 16;
}
inline void fence() { products[simt::fiber].fenced = true; }
inline void commit() {
  Products& mine = products[simt::fiber];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int kPending>
void finish() {
  Products& mine = products[simt::fiber];
  expect(mine.open.empty(), "wgmma: waiting for products that are in no group");
  uint64_t all[warpSize];
  simt::meet(~0u, reinterpret_cast<uintptr_t>(&mine), all);
  const size_t done = mine.groups.size() > kPending ? mine.groups.size() - kPending : 0;
  for (size_t group = 0; group < done; ++group)
    for (size_t i = 0; i < mine.groups[group].size(); ++i) {
      std::vector<const Product*> warp;
      for (const uint64_t lane : all) warp.push_back(&reinterpret_cast<const Products*>(lane)->groups.at(group).at(i));
      mine.groups[group][i].run(mine.groups[group][i], warp);
    }
  __syncwarp();  // the others have read mine
  mine.groups.erase(mine.groups.begin(), mine.groups.begin() + static_cast<std::ptrdiff_t>(done));
  mine.fenced = false;
}
template <class T, int kCount>
void settle(T (&)[kCount]) {}

// Byte `k_byte` of column `column` of b.
inline const char* b_at(uint64_t b, int column, int k_byte) {
  return reinterpret_cast<const char*>(
      wgmma::swizzled(b * 16 + static_cast<uintptr_t>(column * wgmma::kRowBytes + k_byte)));
}

// 32 bytes of k, exact, the sum rounded once.
template <class X, class Sum>
void run(const Product& mine, const std::vector<const Product*>& warp) {
  using V = ptx::Values<X>;
  constexpr int kBytes = 4 / V::kCount;
  auto* const sum = static_cast<Sum*>(mine.sum);
  for (int i = 0; i < mine.columns / 2; ++i) {
    const auto [row, column] = wgmma::sum_at(static_cast<int>(ptx::lane()), i);
    double total = mine.add ? sum[i] : 0;
    for (int half = 0; half < 2; ++half)
      for (int part = 0; part < 4; ++part)
        for (int k = 0; k < V::kCount; ++k) {
          const uint32_t a = warp[static_cast<size_t>(4 * (row % 8) + part)]->a[row / 8 + 2 * half];
          uint32_t b = 0;
          std::memcpy(&b, b_at(mine.b, column, 16 * half + 4 * part + k * kBytes), kBytes);
          total += V::at(a, k) * V::at(b, 0);
        }
    sum[i] = static_cast<Sum>(total);
  }
}

template <class X, class Sum, int kCount>
void multiply(X, Sum (&sum)[kCount], const uint32_t (&a)[4], uint64_t b, bool add) {
  Products& mine = products[simt::fiber];
  expect(mine.fenced, "wgmma: no fence since its registers may have been written");
  mine.open.push_back({2 * kCount, sum, a, b, add, run<X, Sum>});
}

}  // namespace
}  // namespace aoq::hopper
