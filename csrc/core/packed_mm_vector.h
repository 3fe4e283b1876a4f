// The plan of every matmul on packed weights for a vector ISA. An Engine gives the width, the decoding and the
// multiply:
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
// Engine: Vec (kLanes floats), Sum (kLanes products' sums, fp32 or int32), Raw (a vector's rows of a unit of kUnitK
// columns),
//   Weight (decoded: code - kOffset), X (kStep values of x, broadcast together), kMid (the zero point where none is
//   given), kInt8 (x is quantized to int8 per row before it is multiplied), and the functions used below.
#pragma once
#include "core/packed_mm.h"
#include "core/parallel.h"
#include "core/quantize_row.h"

namespace {

using aoq::PackedMm;

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
void sum_groups(const PackedMm& p, const void* x, float* sums) {
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

// A group of one vector of rows of w: its scale, and what the group's sum of x is multiplied with,
// (what decode subtracted from a code - zero_point) * scale.
template <class Engine>
struct GroupScale {
  typename Engine::Vec scale, shift;

  GroupScale() = default;
  GroupScale(const PackedMm& p, int64_t groups, int64_t vector, int64_t group) {
    const int64_t row = vector * Engine::kLanes;
    const int64_t at = (row / aoq::kUnitN * groups + group) * aoq::kUnitN + row % aoq::kUnitN;
    scale = Engine::load(p.scale, p.scale_dtype, at);
    const auto zero = p.zero_point ? Engine::load(p.zero_point, p.scale_dtype, at) : Engine::set(Engine::kMid);
    shift = Engine::mul(Engine::sub(Engine::set(Engine::kOffset), zero), scale);
  }

  // Without a zero point, and with codes decoded around it, sums of x are not needed.
  static bool has_shift(const PackedMm& p) { return p.zero_point != nullptr || Engine::kMid != Engine::kOffset; }
};

// One vector of a row of out, with its bias, in out's dtype.
template <class Lanes>
void store_out(const PackedMm& p, const RowScale* x_scale, int64_t row, int64_t vector, typename Lanes::Vec sum) {
  const int64_t first = vector * Lanes::kLanes, count = p.n - first < Lanes::kLanes ? p.n - first : Lanes::kLanes;
  auto load = [&](const void* data, aoq::Dtype dtype) {
    return count == Lanes::kLanes ? Lanes::load(data, dtype, first) : Lanes::load_part(data, dtype, first, count);
  };
  if (x_scale) {
    const RowScale x = x_scale[row];
    if (x.zero_point != 0) sum = Lanes::fma(Lanes::set(-x.zero_point), load(p.w_sum, aoq::Dtype::f32), sum);
    sum = Lanes::mul(sum, Lanes::set(x.scale));
  }
  if (p.bias) sum = Lanes::add(sum, load(p.bias, p.bias_dtype));
  Lanes::store(p.out, p.x_dtype, row * p.n + first, sum, count);
}

// The same of a row quantized to int8.
inline void sum_groups(const PackedMm& p, const int8_t* codes, float* sums) {
  for (int64_t begin = 0; begin < p.k;) {
    const int64_t end = p.k - begin > p.group ? begin + p.group : p.k;
    int32_t sum = 0;
    for (int64_t k = begin; k < end; ++k) sum += codes[k];
    *sums++ = static_cast<float>(sum);
    begin = end;
  }
}

inline int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }
inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

template <class Engine>
class VectorMm {
  using Vec = typename Engine::Vec;
  using Sum = typename Engine::Sum;
  using Raw = typename Engine::Raw;
  using Weight = typename Engine::Weight;
  using X = typename Engine::X;
  static constexpr int kLanes = Engine::kLanes, kStep = Engine::kStep, kTileRows = Engine::kTileRows;
  static constexpr int kSteps = Engine::kUnitK / kStep;  // of a unit
  static constexpr int64_t kChunk = 128;                 // k decoded at a time: 16 or 32 KB with two vectors
  static constexpr int64_t kAhead = 32;                  // units to prefetch ahead in the stream of codes

 public:
  static void run(const PackedMm& p) { VectorMm(p).run(); }

 private:
  explicit VectorMm(const PackedMm& p)
      : p_(p),
        units_(aoq::ceil_div(p.k, Engine::kUnitK)),
        groups_(aoq::ceil_div(p.k, p.group)),
        steps_(units_ * kSteps),
        tiles_(aoq::ceil_div(p.m, kTileRows)),
        vectors_(aoq::ceil_div(p.n, kLanes)),
        panels_(aoq::ceil_div(vectors_, 2)),
        shifted_(GroupScale<Engine>::has_shift(p)),
        x_(p.m * steps_),
        sums_(shifted_ ? p.m * groups_ : 0),
        x_scale_(Engine::kInt8 ? p.m : 0) {}

  const RowScale* x_scale() const { return Engine::kInt8 ? x_scale_.get() : nullptr; }
  int64_t first_row(int64_t tile) const { return p_.m * tile / tiles_; }

  void run() {
    auto pack = [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) pack_tile(first_row(tile), first_row(tile + 1));
    };
    parallel(tiles_, at_least_one(65536 / (p_.k * kTileRows)), pack);

    // Rows of x that stay in L2 while the panels of a thread pass by.
    const int64_t fitting = 1048576 / (steps_ * static_cast<int64_t>(sizeof(X)) * kTileRows);
    const int64_t most = clamp(fitting, 48 / kTileRows, 256 / kTileRows);  // in tiles
    const int64_t blocks = aoq::ceil_div(tiles_, most), block = aoq::ceil_div(tiles_, blocks);
    const bool fused = p_.m <= Engine::kFusedRows;
    const int64_t rows = p_.m < block * kTileRows ? p_.m : block * kTileRows;
    // Below about 5 us of work a second thread costs more than it brings.
    const int64_t cost = steps_ * 2 * (rows < 4 ? 4 : rows);
    const int64_t scratch = fused ? 0 : (kChunk / kStep + block * kTileRows) * 2 * kLanes;
    auto multiply = [&](int64_t panel, int64_t index, float* memory) {
      const bool two = 2 * panel + 1 < vectors_;
      const int64_t begin = tiles_ * index / blocks, end = tiles_ * (index + 1) / blocks;
      if (fused)
        two ? fused_rows<2>(panel) : fused_rows<1>(panel);
      else
        two ? blocked<2>(panel, begin, end, memory) : blocked<1>(panel, begin, end, memory);
    };
    // Each thread its own panels, all rows of x; where panels are few, pairs of a panel and a block.
    auto columns = [&](int64_t begin, int64_t end) {
      const Scratch<float> memory(scratch);
      for (int64_t index = 0; index < blocks; ++index)
        for (int64_t panel = begin; panel < end; ++panel) multiply(panel, index, memory.get());
    };
    auto pairs = [&](int64_t begin, int64_t end) {
      const Scratch<float> memory(scratch);
      for (int64_t pair = begin; pair < end; ++pair) multiply(pair % panels_, pair / panels_, memory.get());
    };
    if (blocks == 1 || panels_ >= 8 * aoq::num_threads())
      parallel(panels_, at_least_one(16384 / (cost * blocks)), columns);
    else
      parallel(panels_ * blocks, at_least_one(16384 / cost), pairs);
  }

  // x[first:last] to [step][row], zeros after k, and the sums over groups.
  void pack_tile(int64_t first, int64_t last) const {
    const int64_t rows = last - first;
    const Scratch<int8_t> quantized(Engine::kInt8 ? units_ * Engine::kUnitK + 16 : 0);
    for (int64_t row = first; row < last; ++row) {
      const void* x = static_cast<const char*>(p_.x) + row * p_.x_stride * size_of(p_.x_dtype);
      X* out = x_.get() + first * steps_ + (row - first);
      float* sums = sums_.get() + row * groups_;
      if constexpr (Engine::kInt8) {
        int8_t* codes = quantized.get();
        x_scale_.get()[row] = quantize_row(x, p_.x_dtype, p_.k, p_.x_asymmetric, aoq::Dtype::f32, codes);
        std::memset(codes + p_.k, 0, static_cast<size_t>(units_ * Engine::kUnitK - p_.k));
        Engine::pack(codes, steps_, out, rows);
        if (shifted_) sum_groups(p_, codes, sums);
      } else {
        Engine::pack(x, p_.x_dtype, p_.k, steps_, out, rows);
        if (shifted_) sum_groups<Engine>(p_, x, sums);
      }
    }
  }

  const uint8_t* codes(int64_t vector) const {
    constexpr int64_t kPerBlock = aoq::kUnitN / kLanes;
    return p_.packed + vector / kPerBlock * units_ * aoq::kUnitBytes + vector % kPerBlock * (kLanes * 4);
  }

  // Fetches what a vector of this panel reads kAhead units from now; near its end, the start of the next panel's.
  void prefetch(int64_t vector, int64_t unit) const {
    const int64_t ahead = unit + kAhead;
    const uint8_t* at = ahead < units_ ? codes(vector) + ahead * aoq::kUnitBytes
                                       : codes(vector + 2) + (ahead - units_) * aoq::kUnitBytes;
    Engine::prefetch(at);
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
      for (int64_t group = 0, unit = 0; group < groups_;) {
        // A piece of a group: 16384 products of 8 bits each fit an int32 sum.
        constexpr int64_t kPiece = 16384 / Engine::kUnitK;
        const int64_t end = unit_end(group) - unit < kPiece ? unit_end(group) : unit + kPiece;
        const bool whole = end == unit_end(group);
        Sum sum[kChains][kRows][kVectors];
        for (auto& chain : sum)
          for (auto& row : chain)
            for (Sum& value : row) value = Engine::zero();
        for (; unit < end; ++unit, x += kSteps * kRows) {
          Raw raw[kVectors];
          for (int v = 0; v < kVectors; ++v) {
            raw[v] = Engine::load_raw(stream[v] + unit * aoq::kUnitBytes);
            prefetch(2 * panel + v, unit);
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
            total[r][v] = Engine::fma(Engine::to_float(sum[0][r][v]), w.scale, total[r][v]);
            if (shifted_ && whole)
              total[r][v] = Engine::fma(Engine::set(sums_.get()[r * groups_ + group]), w.shift, total[r][v]);
          }
        }
        group += whole;
      }
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store_out<Engine>(p_, x_scale(), r, 2 * panel + v, total[r][v]);
    }
  }

  int64_t unit_end(int64_t group) const {
    return group + 1 == groups_ ? units_ : (group + 1) * p_.group / Engine::kUnitK;
  }

  template <int kVectors>
  void blocked(int64_t panel, int64_t tile_begin, int64_t tile_end, float* memory) const {
    float* const weights = memory;
    float* const sums = memory + kChunk / kStep * 2 * kLanes;
    const int64_t row_begin = first_row(tile_begin), row_end = first_row(tile_end);
    std::memset(sums, 0, static_cast<size_t>((row_end - row_begin) * kVectors * kLanes) * sizeof(float));
    for (int64_t group = 0, unit = 0; group < groups_; ++group) {
      GroupScale<Engine> scale[kVectors];
      for (int v = 0; v < kVectors; ++v) scale[v] = GroupScale<Engine>(p_, groups_, 2 * panel + v, group);
      bool shift = shifted_;  // once a group
      for (const int64_t end = unit_end(group); unit < end; shift = false) {
        const int64_t count = end - unit < kChunk / Engine::kUnitK ? end - unit : kChunk / Engine::kUnitK;
        decode_chunk<kVectors>(panel, unit, count, weights);
        for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
          const int64_t row = first_row(tile), rows = first_row(tile + 1) - row;
          const X* x = x_.get() + row * steps_ + unit * kSteps * rows;
          const float* x_sums = shift ? sums_.get() + row * groups_ + group : nullptr;
          multiply<kVectors>(rows, x, weights, count * kSteps, sums + (row - row_begin) * kVectors * kLanes, scale,
                             x_sums);
        }
        unit += count;
      }
    }
    for (int64_t row = row_begin; row < row_end; ++row)
      for (int v = 0; v < kVectors; ++v)
        store_out<Engine>(p_, x_scale(), row, 2 * panel + v,
                          Engine::load_f32(sums + ((row - row_begin) * kVectors + v) * kLanes));
  }

  template <int kVectors>
  void decode_chunk(int64_t panel, int64_t unit, int64_t count, float* weights) const {
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* stream = codes(2 * panel + v) + unit * aoq::kUnitBytes;
      float* out = weights + v * kLanes;
      for (int64_t u = 0; u < count; ++u, stream += aoq::kUnitBytes) {
        const Raw raw = Engine::load_raw(stream);
        prefetch(2 * panel + v, unit + u);
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
      AOQ_ROWS(2)
      AOQ_ROWS(3)
      AOQ_ROWS(4) AOQ_ROWS(5) AOQ_ROWS(6) AOQ_ROWS(7) AOQ_ROWS(8) AOQ_ROWS(9) AOQ_ROWS(10) AOQ_ROWS(11) AOQ_ROWS(12)
#undef AOQ_ROWS
    }
    static_assert(kTileRows <= 12, "a case for each number of rows");
  }

  template <int kVectors, int kRows>
  void multiply_tile(const X* x, const float* weights, int64_t steps, float* sums, const GroupScale<Engine>* scale,
                     const float* x_sums) const {
    Sum sum[kRows][kVectors];
    for (auto& row : sum)
      for (Sum& value : row) value = Engine::zero();
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
        Vec total = Engine::fma(Engine::to_float(sum[r][v]), scale[v].scale, Engine::load_f32(at));
        if (x_sums) total = Engine::fma(Engine::set(x_sums[r * groups_]), scale[v].shift, total);
        Engine::store_f32(at, total);
      }
  }

  const PackedMm& p_;
  const int64_t units_, groups_, steps_, tiles_, vectors_, panels_;
  const bool shifted_;
  Scratch<X> x_;               // [tile][step][row]
  Scratch<float> sums_;        // [m][groups], where needed
  Scratch<RowScale> x_scale_;  // [m], where x is quantized
};

}  // namespace
