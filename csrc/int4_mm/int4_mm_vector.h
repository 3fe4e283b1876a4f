// int4_mm for a vector ISA. An Engine gives the width and the multiply; the plan is the same for all:
//
//   A panel is two vectors of rows of w; panels are shared out among threads.
//   Few rows of x (m <= kFusedRows): decode in registers, multiply at once; bound by reading w.
//   More: decode a chunk of a group (<= 128 k) of a panel into L1 once, then multiply it with tiles of up to
//   kTileRows rows of x held in registers; scale the accumulators into an fp32 panel of out. Bound by the multiply.
//
//            panel: 2 vectors of n
//          +-----------+-----------+
//   chunk  |  weights, decoded, L1 |        x is packed [tile][k / kStep][rows], so that a step of a tile is
//   of k   |                       |        one run of broadcasts.
//          +-----------+-----------+
//   tile   | rows x 2 accumulators |
//
// Engine: Vec (kLanes floats), Raw (the same rows of a unit), Weight (decoded: code - 8), X (kStep values of x, broadcast
//   together), and the functions used below.
#pragma once
#include "core/int4.h"
#include "core/parallel.h"
#include "int4_mm/int4_mm.h"

namespace {

using aoq::Int4Mm;

// A row of x as floats, `stride` apart, zeros from k to steps.
template <class Lanes>
void pack_f32(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, float* out, int64_t stride) {
  alignas(64) float part[Lanes::kLanes];
  for (int64_t begin = 0; begin < steps; begin += Lanes::kLanes) {
    const int64_t count = k - begin;
    if (count >= Lanes::kLanes)
      Lanes::store_f32(part, Lanes::load(x, dtype, begin));
    else
      Lanes::store_f32(part, count > 0 ? Lanes::load_part(x, dtype, begin, count) : Lanes::set(0));
    for (int64_t lane = 0; lane < Lanes::kLanes && begin + lane < steps; ++lane)
      out[(begin + lane) * stride] = part[lane];
  }
}

// The sum of a row of x over each group.
template <class Lanes>
void sum_groups(const Int4Mm& p, const void* x, float* sums) {
  for (int64_t begin = 0; begin < p.k;) {
    const int64_t end = p.k - begin > p.group ? begin + p.group : p.k;
    auto sum = Lanes::set(0);
    int64_t k = begin;
    for (; k + Lanes::kLanes <= end; k += Lanes::kLanes) sum = Lanes::add(sum, Lanes::load(x, p.x_dtype, k));
    if (k < end) sum = Lanes::add(sum, Lanes::load_part(x, p.x_dtype, k, end - k));
    *sums++ = Lanes::reduce(sum);
    begin = end;
  }
}

// A group of one vector of rows of w: its scale, and what the group's sum of x is multiplied with where there are zero
// points, (8 - zero_point) * scale.
template <class Lanes>
struct GroupScale {
  typename Lanes::Vec scale, shift;

  GroupScale() = default;
  GroupScale(const Int4Mm& p, int64_t groups, int64_t vector, int64_t group) {
    const int64_t row = vector * Lanes::kLanes;
    const int64_t at = (row / aoq::int4::kUnitN * groups + group) * aoq::int4::kUnitN + row % aoq::int4::kUnitN;
    scale = Lanes::load(p.scale, p.scale_dtype, at);
    const auto mid = Lanes::set(aoq::int4::kMidCode);
    const auto zero = p.zero_point ? Lanes::load(p.zero_point, p.scale_dtype, at) : mid;
    shift = Lanes::mul(Lanes::sub(mid, zero), scale);
  }
};

// One vector of a row of out, with its bias, in out's dtype.
template <class Lanes>
void store_out(const Int4Mm& p, int64_t row, int64_t vector, typename Lanes::Vec sum) {
  const int64_t first = vector * Lanes::kLanes, count = p.n - first < Lanes::kLanes ? p.n - first : Lanes::kLanes;
  if (p.bias) {
    const bool whole = count == Lanes::kLanes;
    sum = Lanes::add(
        sum, whole ? Lanes::load(p.bias, p.bias_dtype, first) : Lanes::load_part(p.bias, p.bias_dtype, first, count));
  }
  Lanes::store(p.out, p.x_dtype, row * p.n + first, sum, count);
}

inline int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }
inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

template <class Engine>
class VectorMm {
  using Vec = typename Engine::Vec;
  using Raw = typename Engine::Raw;
  using Weight = typename Engine::Weight;
  using X = typename Engine::X;
  static constexpr int kLanes = Engine::kLanes, kStep = Engine::kStep, kTileRows = Engine::kTileRows;
  static constexpr int kSteps = aoq::int4::kUnitK / kStep;  // a unit
  static constexpr int64_t kChunk = 128;                    // k decoded at a time: 16 or 32 KB with two vectors
  static constexpr int64_t kPrefetch = 2048;                // bytes ahead in the stream of codes

 public:
  static void run(const Int4Mm& p) { VectorMm(p).run(); }

 private:
  explicit VectorMm(const Int4Mm& p)
      : p_(p),
        units_(aoq::int4::ceil_div(p.k, aoq::int4::kUnitK)),
        groups_(aoq::int4::ceil_div(p.k, p.group)),
        steps_(units_ * kSteps),
        tiles_(aoq::int4::ceil_div(p.m, kTileRows)),
        vectors_(aoq::int4::ceil_div(p.n, kLanes)),
        panels_(aoq::int4::ceil_div(vectors_, 2)),
        corrected_(p.zero_point != nullptr),
        x_(p.m * steps_),
        sums_(corrected_ ? p.m * groups_ : 0) {}

  int64_t first_row(int64_t tile) const { return p_.m * tile / tiles_; }

  void run() {
    auto pack = [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) pack_tile(first_row(tile), first_row(tile + 1));
    };
    parallel(tiles_, at_least_one(65536 / (p_.k * kTileRows)), pack);

    // Rows of x that stay in L2 while the panels of a thread pass by.
    const int64_t fitting = 1048576 / (steps_ * static_cast<int64_t>(sizeof(X)) * kTileRows);
    const int64_t most = clamp(fitting, 48 / kTileRows, 256 / kTileRows);  // in tiles
    const int64_t blocks = aoq::int4::ceil_div(tiles_, most), block = aoq::int4::ceil_div(tiles_, blocks);
    const bool fused = p_.m <= Engine::kFusedRows;
    const int64_t rows = p_.m < block * kTileRows ? p_.m : block * kTileRows;
    // Below about 5 us of work a second thread costs more than it brings.
    const int64_t cost = steps_ * 2 * (rows < 4 ? 4 : rows);
    auto tasks = [&](int64_t begin, int64_t end) {
      Scratch<float> memory(fused ? 0 : kChunk / kStep * 2 * kLanes + (block * kTileRows) * 2 * kLanes);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t panel = task % panels_, tile = task / panels_ * block;
        const bool two = 2 * panel + 1 < vectors_;
        if (fused)
          two ? fused_rows<2>(panel) : fused_rows<1>(panel);
        else
          two ? blocked<2>(panel, tile, block, memory.get()) : blocked<1>(panel, tile, block, memory.get());
      }
    };
    parallel(blocks * panels_, at_least_one(16384 / cost), tasks);
  }

  // x[first:last] to [step][row], zeros after k, and the sums over groups.
  void pack_tile(int64_t first, int64_t last) const {
    const int64_t rows = last - first;
    for (int64_t row = first; row < last; ++row) {
      const void* x = static_cast<const char*>(p_.x) + row * p_.x_stride * size_of(p_.x_dtype);
      Engine::pack(x, p_.x_dtype, p_.k, steps_, x_.get() + first * steps_ + (row - first), rows);
      if (corrected_) sum_groups<Engine>(p_, x, sums_.get() + row * groups_);
    }
  }

  const uint8_t* codes(int64_t vector) const {
    constexpr int64_t kPerBlock = aoq::int4::kUnitN / kLanes;
    return p_.packed + vector / kPerBlock * units_ * aoq::int4::kUnitBytes + vector % kPerBlock * (kLanes * 4);
  }

  template <int kVectors>
  void fused_rows(int64_t panel) const {
    switch (p_.m) {
      case 1: return fused<kVectors, 1>(panel);
      case 2: return fused<kVectors, 2>(panel);
      case 3: return fused<kVectors, 3>(panel);
      case 4: return fused<kVectors, 4>(panel);
    }
  }

  template <int kVectors, int kRows>
  void fused(int64_t panel) const {
    if constexpr (kRows <= Engine::kFusedRows) {
      constexpr int kChains = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;  // enough independent sums to hide latency
      const uint8_t* stream[kVectors];
      Vec total[kRows][kVectors];
      for (int v = 0; v < kVectors; ++v) stream[v] = codes(2 * panel + v);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) total[r][v] = Engine::set(0);
      const X* x = x_.get();
      for (int64_t group = 0, unit = 0; group < groups_; ++group) {
        const int64_t end = unit_end(group);
        Vec sum[kChains][kRows][kVectors];
        for (auto& chain : sum)
          for (auto& row : chain)
            for (Vec& value : row) value = Engine::set(0);
        for (; unit < end; ++unit, x += kSteps * kRows) {
          Raw raw[kVectors];
          for (int v = 0; v < kVectors; ++v) {
            raw[v] = Engine::load_raw(stream[v] + unit * aoq::int4::kUnitBytes);
            Engine::prefetch(stream[v] + unit * aoq::int4::kUnitBytes + kPrefetch);
          }
#pragma GCC unroll 8
          for (int j = 0; j < kSteps; ++j)
            for (int v = 0; v < kVectors; ++v) {
              const Weight weight = Engine::decode(raw[v], j);
              for (int r = 0; r < kRows; ++r)
                sum[j % kChains][r][v] = Engine::dot(sum[j % kChains][r][v], weight, x + j * kRows + r);
            }
        }
        for (int v = 0; v < kVectors; ++v) {
          const GroupScale<Engine> w(p_, groups_, 2 * panel + v, group);
          for (int r = 0; r < kRows; ++r) {
            for (int c = 1; c < kChains; ++c) sum[0][r][v] = Engine::add(sum[0][r][v], sum[c][r][v]);
            total[r][v] = Engine::fma(sum[0][r][v], w.scale, total[r][v]);
            if (corrected_)
              total[r][v] = Engine::fma(Engine::set(sums_.get()[r * groups_ + group]), w.shift, total[r][v]);
          }
        }
      }
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store_out<Engine>(p_, r, 2 * panel + v, total[r][v]);
    }
  }

  int64_t unit_end(int64_t group) const {
    return group + 1 == groups_ ? units_ : (group + 1) * p_.group / aoq::int4::kUnitK;
  }

  template <int kVectors>
  void blocked(int64_t panel, int64_t tile_begin, int64_t block, float* memory) const {
    float* const weights = memory;
    float* const sums = memory + kChunk / kStep * 2 * kLanes;
    const int64_t tile_end = tile_begin + block < tiles_ ? tile_begin + block : tiles_;
    const int64_t row_begin = first_row(tile_begin), row_end = first_row(tile_end);
    std::memset(sums, 0, static_cast<size_t>((row_end - row_begin) * kVectors * kLanes) * sizeof(float));
    for (int64_t group = 0, unit = 0; group < groups_; ++group) {
      GroupScale<Engine> scale[kVectors];
      for (int v = 0; v < kVectors; ++v) scale[v] = GroupScale<Engine>(p_, groups_, 2 * panel + v, group);
      bool correct = corrected_;  // once a group
      for (const int64_t end = unit_end(group); unit < end; correct = false) {
        const int64_t count = end - unit < kChunk / 8 ? end - unit : kChunk / 8;
        decode_chunk<kVectors>(panel, unit, count, weights);
        for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
          const int64_t row = first_row(tile), rows = first_row(tile + 1) - row;
          const X* x = x_.get() + row * steps_ + unit * kSteps * rows;
          const float* x_sums = correct ? sums_.get() + row * groups_ + group : nullptr;
          multiply<kVectors>(rows, x, weights, count * kSteps, sums + (row - row_begin) * kVectors * kLanes, scale,
                             x_sums);
        }
        unit += count;
      }
    }
    for (int64_t row = row_begin; row < row_end; ++row)
      for (int v = 0; v < kVectors; ++v)
        store_out<Engine>(p_, row, 2 * panel + v, Engine::load_f32(sums + ((row - row_begin) * kVectors + v) * kLanes));
  }

  template <int kVectors>
  void decode_chunk(int64_t panel, int64_t unit, int64_t count, float* weights) const {
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* stream = codes(2 * panel + v) + unit * aoq::int4::kUnitBytes;
      float* out = weights + v * kLanes;
      for (int64_t u = 0; u < count; ++u, stream += aoq::int4::kUnitBytes) {
        const Raw raw = Engine::load_raw(stream);
        Engine::prefetch(stream + kPrefetch);
#pragma GCC unroll 8
        for (int j = 0; j < kSteps; ++j, out += kVectors * kLanes) Engine::store_weight(out, Engine::decode(raw, j));
      }
    }
  }

  template <int kVectors>
  void multiply(int64_t rows, const X* x, const float* weights, int64_t steps, float* sums,
                const GroupScale<Engine>* scale, const float* x_sums) const {
    switch (rows) {
#define AOQ_ROWS(r)                                                                                   \
  case r:                                                                                             \
    if constexpr (r <= kTileRows) multiply_tile<kVectors, r>(x, weights, steps, sums, scale, x_sums); \
    break;
      AOQ_ROWS(1)
      AOQ_ROWS(2) AOQ_ROWS(3) AOQ_ROWS(4) AOQ_ROWS(5) AOQ_ROWS(6) AOQ_ROWS(7) AOQ_ROWS(8) AOQ_ROWS(9) AOQ_ROWS(10)
          AOQ_ROWS(11) AOQ_ROWS(12)
#undef AOQ_ROWS
    }
    static_assert(kTileRows <= 12, "a case for each number of rows");
  }

  template <int kVectors, int kRows>
  void multiply_tile(const X* x, const float* weights, int64_t steps, float* sums, const GroupScale<Engine>* scale,
                     const float* x_sums) const {
    Vec sum[kRows][kVectors];
    for (auto& row : sum)
      for (Vec& value : row) value = Engine::set(0);
    for (int64_t step = 0; step < steps; ++step, x += kRows, weights += kVectors * kLanes) {
      Weight weight[kVectors];
      for (int v = 0; v < kVectors; ++v) weight[v] = Engine::load_weight(weights + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = Engine::dot(sum[r][v], weight[v], x + r);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        float* at = sums + (r * kVectors + v) * kLanes;
        Vec total = Engine::fma(sum[r][v], scale[v].scale, Engine::load_f32(at));
        if (x_sums) total = Engine::fma(Engine::set(x_sums[r * groups_]), scale[v].shift, total);
        Engine::store_f32(at, total);
      }
  }

  const Int4Mm& p_;
  const int64_t units_, groups_, steps_, tiles_, vectors_, panels_;
  const bool corrected_;
  Scratch<X> x_;         // [tile][step][row]
  Scratch<float> sums_;  // [m][groups], where needed
};

}  // namespace
