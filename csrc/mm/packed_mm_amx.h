// The plan of every matmul on packed weights for AMX. An Engine gives what a tile of k is and how to decode it:
//
//   A panel is 32 rows of w; panels are shared out among threads. A chunk is up to four tiles of k of one group: its
//   weight tiles are decoded into L1 as exact integers, then multiplied with up to 32 rows of x at a time in four sum
//   tiles:
//
//              w tile 6    w tile 7
//   x tile 4   sum 0       sum 1
//   x tile 5   sum 2       sum 3
//
//   While the tile unit multiplies a chunk, the vector unit decodes the next chunk and scales the sums before into the
//   fp32 panel of out: neither waits for the other. Groups that are not whole tiles of k end in zeros of x. Where a
//   block of x is larger than its share of L2, a run of panels goes through k in pieces of it. Bound by the tile unit
//   for many rows of x, by reading w for few.
//
// Engine: kTileK (columns of a tile of x: 32 bf16 or 64 int8), kUnitK, kMid, kOffset, kInt8, and the functions used
// below.
#pragma once
#include "simd/vec_avx512.h"

#include "mm/packed_mm_vector.h"
#include "simd/amx.h"

namespace {

constexpr int64_t kTile = 1024;       // bytes
constexpr int64_t kTileRows = 16;     // of x
constexpr int64_t kChunkSteps = 4;    // tiles of k in a chunk
constexpr int64_t kBlockTiles = 16;   // 256 rows of x stay in L2 while panels pass by
constexpr int64_t kBlockX = 1 << 20;  // bytes of x that do
constexpr int64_t kRun = 8;           // panels whose sums do too, 256 KB, where they take x piece by piece

template <class Engine>
class AmxMm {
  static constexpr int64_t kTileK = Engine::kTileK;

 public:
  explicit AmxMm(const PackedMm& p)
      : p_(p),
        units_(aoq::ceil_div(p.k, Engine::kUnitK)),
        block_bytes_(Engine::block_bytes(p.k)),
        groups_(aoq::ceil_div(p.k, p.group)),
        group_k_(p.group < p.k ? p.group : p.k),
        group_steps_(aoq::ceil_div(group_k_, kTileK)),
        // A tile of rows must not start a multiple of 128 KB after another: they would share the same sets of L2.
        row_tile_bytes_((groups_ * group_steps_ + kChunkSteps) * kTile),
        row_tiles_(aoq::ceil_div(p.m, kTileRows)),
        vectors_(aoq::ceil_div(p.n, Avx512::kLanes)),
        x_(row_tiles_ * row_tile_bytes_),
        shifted_(GroupScale<Engine>::has_shift(p)),
        x_sums_(shifted_ ? p.m * groups_ : 0),
        x_scale_(Engine::kInt8 ? p.m : 0) {}

  void run() {
    auto pack = [&](int64_t begin, int64_t end) {
      const Scratch<int8_t> quantized(Engine::kInt8 ? p_.k + 16 : 0);
      const RowsOfX given(p_, 1);
      for (int64_t row = begin; row < end; ++row) pack_row(row, given, quantized.get());
    };
    parallel(row_tiles_ * kTileRows, at_least_one(65536 / p_.k), pack);
    const int64_t panels = aoq::ceil_div(vectors_, 2), blocks = aoq::ceil_div(row_tiles_, kBlockTiles);
    const int64_t rows = row_tiles_ < kBlockTiles ? row_tiles_ : kBlockTiles;
    const int64_t piece = kBlockX / (rows * kTile), run = groups_ * group_steps_ > piece ? kRun : 1;
    auto tasks = [&](int64_t begin, int64_t end) {
      const Tiles tiles(p_.m);
      const Scratch<uint8_t> weights(2 * kChunkSteps * 2 * kTile);
      const Scratch<float> sums(run * rows * 2 * 256), products(2 * 4 * 256);
      for (int64_t task = begin, count; task < end; task += count) {
        const int64_t first = task % panels, tile = task / panels * kBlockTiles;
        count = run < end - task ? run : end - task;
        count = count < panels - first ? count : panels - first;
        for (Chunk from = chunk_at(0, 0), to = from; from.group < groups_; from = to)
          for (int64_t i = 0; i < count; ++i) {
            const Buffers buffers{weights.get(), sums.get() + i * rows * 2 * 256, products.get()};
            const Pass pass{first + i, tile, from, position(from) + piece};
            to = 2 * pass.panel + 1 < vectors_ ? multiply<2>(pass, buffers) : multiply<1>(pass, buffers);
          }
      }
    };
    // Below about 5 us of work a second thread costs more than it brings.
    parallel(blocks * panels, at_least_one(131072 / (p_.k * (4 + rows * 2))), tasks);
  }

 private:
  struct Buffers {
    uint8_t* weights;  // two chunks, [step][vector][16 pairs of k][16 rows of w]
    float* sums;       // out's panel, [row tile][vector][16][16]
    float* products;   // two sets of sum tiles, waiting to be scaled
  };

  // Where a chunk lies: its units, its first tile of x, its group.
  struct Chunk {
    int64_t group, step, steps, unit;
    bool first() const { return step == 0; }
  };

  Chunk chunk_at(int64_t group, int64_t step) const {
    const int64_t left = p_.k - group * group_k_;
    const int64_t steps = aoq::ceil_div(left < group_k_ ? left : group_k_, kTileK) - step;
    const int64_t unit = (group * group_k_ + step * kTileK) / Engine::kUnitK;
    return {group, step, steps < kChunkSteps ? steps : kChunkSteps, unit};
  }

  Chunk after(const Chunk& chunk) const {
    const Chunk next = chunk_at(chunk.group, chunk.step + chunk.steps);
    return next.steps > 0 ? next : chunk_at(chunk.group + 1, 0);
  }

  int64_t position(const Chunk& chunk) const { return chunk.group * group_steps_ + chunk.step; }

  // A piece of k of a panel: the chunks from `begin` on that start before position `end`.
  struct Pass {
    int64_t panel, tile;
    Chunk begin;
    int64_t end;
  };

  // Products of up to 32 rows of x with a chunk, not yet scaled.
  struct Pending {
    const float* products = nullptr;
    float* sums;
    int64_t row_tile, row_tiles, group;
    bool first;
  };

  void pack_row(int64_t row, const RowsOfX& given, int8_t* codes) const {
    uint8_t* out = x_.get() + row / kTileRows * row_tile_bytes_ + row % kTileRows * 64;
    const char* x = nullptr;
    if (row < p_.m) {
      x = static_cast<const char*>(given.load(row, 0));
      if constexpr (Engine::kInt8) {
        x_scale_.get()[row] = quantize_row(x, p_.x.dtype, p_.k, p_.x.asymmetric, aoq::Dtype::f32, codes);
        x = reinterpret_cast<const char*>(codes);
        if (shifted_) sum_groups(p_, codes, x_sums_.get() + row * groups_);
      } else if (shifted_) {
        sum_groups<Avx512>(p_, x, x_sums_.get() + row * groups_);
      }
    }
    for (int64_t group = 0; group < groups_; ++group)
      for (int64_t step = 0; step < group_steps_; ++step, out += kTile) {
        const int64_t first = group * group_k_ + step * kTileK;
        int64_t end = (group + 1) * group_k_;
        end = end < p_.k ? end : p_.k;
        const int64_t count = row < p_.m ? clamp(end - first, 0, kTileK) : 0;
        _mm512_storeu_si512(out, count ? Engine::load_x(x, first, count) : _mm512_setzero_si512());
      }
  }

  // One tile of k of a chunk, both vectors, as Engine lays a tile out.
  template <int kVectors>
  void decode(int64_t panel, const Chunk& chunk, int64_t step, uint8_t* out) const {
    constexpr int64_t kUnits = kTileK / Engine::kUnitK;
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* stream = p_.w.stream + (2 * panel + v) * block_bytes_;
      uint8_t* tile = out + (step * 2 + v) * kTile;
#pragma GCC unroll 4
      for (int64_t u = 0; u < kUnits; ++u, tile += kTile / kUnits) {
        const int64_t unit = chunk.unit + step * kUnits + u;
        // Past the end x is 0, and so are the weights: what lies there could be anything.
        const auto words = unit < units_ ? Engine::load_unit(stream, unit) : typename Engine::Words{};
        prefetch(stream + unit * Engine::kUnitBytes + 2048);
        Engine::decode(words, tile);
      }
    }
  }

  // Returns the first chunk of the next piece; after the last one out is stored.
  template <int kVectors>
  Chunk multiply(const Pass& pass, const Buffers& buffers) const {
    const int64_t panel = pass.panel, tile_begin = pass.tile;
    const int64_t tile_end = tile_begin + kBlockTiles < row_tiles_ ? tile_begin + kBlockTiles : row_tiles_;
    Chunk chunk = pass.begin;
    if (position(chunk) == 0)
      std::memset(buffers.sums, 0, static_cast<size_t>((tile_end - tile_begin) * 2 * 256) * sizeof(float));
    uint8_t* weights = buffers.weights;
    uint8_t* next_weights = weights + kChunkSteps * 2 * kTile;
    float* products = buffers.products;
    Pending pending;
    auto in_piece = [&](const Chunk& chunk) { return chunk.group < groups_ && position(chunk) < pass.end; };
    for (int64_t step = 0; step < chunk.steps; ++step) decode<kVectors>(panel, chunk, step, weights);
    while (in_piece(chunk)) {
      const Chunk next = after(chunk);
      int64_t decoded = in_piece(next) ? 0 : next.steps;
      for (int64_t tile = tile_begin; tile < tile_end; tile += 2) {
        const bool two = tile + 1 < tile_end;
        const uint8_t* x = x_.get() + tile * row_tile_bytes_ + (chunk.group * group_steps_ + chunk.step) * kTile;
        two ? zero_sums<2, kVectors>() : zero_sums<1, kVectors>();
        for (int64_t step = 0; step < chunk.steps; ++step, x += kTile) {
          const uint8_t* w = weights + step * 2 * kTile;
          two ? multiply_step<2, kVectors>(x, w) : multiply_step<1, kVectors>(x, w);
          if (decoded < next.steps) decode<kVectors>(panel, next, decoded++, next_weights);
        }
        two ? store_sums<2, kVectors>(products) : store_sums<1, kVectors>(products);
        if (pending.products) scale<kVectors>(panel, pending);
        pending = {products,     buffers.sums + (tile - tile_begin) * 2 * 256, tile, two ? 2 : 1, chunk.group,
                   chunk.first()};
        products = products == buffers.products ? products + 4 * 256 : buffers.products;
      }
      // Fewer steps here than in the next chunk, and one pass over x.
      while (decoded < next.steps) decode<kVectors>(panel, next, decoded++, next_weights);
      chunk = next;
      uint8_t* const done = weights;
      weights = next_weights;
      next_weights = done;
    }
    scale<kVectors>(panel, pending);
    if (chunk.group < groups_) return chunk;
    for (int v = 0; v < kVectors; ++v) {
      const OutColumns<Avx512> out(p_, Engine::kInt8 ? x_scale_.get() : nullptr, 2 * panel + v);
      for (int64_t row = tile_begin * kTileRows; row < tile_end * kTileRows && row < p_.m; ++row) {
        const float* tile = buffers.sums + ((row / kTileRows - tile_begin) * 2 + v) * 256;
        out.store(row, _mm512_load_ps(tile + row % kTileRows * 16));
      }
    }
    return chunk;
  }

  template <int kRowTiles, int kVectors>
  static void zero_sums() {
    tile_zero<0>();
    if (kVectors > 1) tile_zero<1>();
    if (kRowTiles > 1) tile_zero<2>();
    if (kRowTiles > 1 && kVectors > 1) tile_zero<3>();
  }

  template <int kRowTiles, int kVectors>
  void multiply_step(const uint8_t* x, const uint8_t* w) const {
    tile_load<6>(w, 64);
    tile_stream<4>(x, 64);
    Engine::template dot<0, 4, 6>();
    if (kVectors > 1) {
      tile_load<7>(w + kTile, 64);
      Engine::template dot<1, 4, 7>();
    }
    if (kRowTiles > 1) {
      tile_stream<5>(x + row_tile_bytes_, 64);
      Engine::template dot<2, 5, 6>();
      if (kVectors > 1) Engine::template dot<3, 5, 7>();
    }
  }

  template <int kRowTiles, int kVectors>
  static void store_sums(float* products) {
    tile_store<0>(products, 64);
    if (kVectors > 1) tile_store<1>(products + 256, 64);
    if (kRowTiles > 1) tile_store<2>(products + 512, 64);
    if (kRowTiles > 1 && kVectors > 1) tile_store<3>(products + 768, 64);
  }

  // sums += products * scale, and once a group, the sum of x times its zero point's share.
  template <int kVectors>
  void scale(int64_t panel, const Pending& pending) const {
    const int64_t rows = p_.m < kTileRows ? p_.m : kTileRows;
    for (int v = 0; v < kVectors; ++v) {
      const GroupScale<Engine> w(p_, groups_, 2 * panel + v, pending.group);
      for (int64_t t = 0; t < pending.row_tiles; ++t) {
        const float* products = pending.products + (t * 2 + v) * 256;
        float* sums = pending.sums + (t * 2 + v) * 256;
        for (int64_t r = 0; r < rows; ++r) {
          const __m512 sum = _mm512_load_ps(sums + r * 16);
          _mm512_store_ps(sums + r * 16, _mm512_fmadd_ps(Engine::product(products + r * 16), w.scale, sum));
        }
        if (!shifted_ || !pending.first) continue;
        const int64_t row = (pending.row_tile + t) * kTileRows;
        for (int64_t r = 0; r < rows && row + r < p_.m; ++r) {
          const __m512 x_sum = _mm512_set1_ps(x_sums_.get()[(row + r) * groups_ + pending.group]);
          _mm512_store_ps(sums + r * 16, _mm512_fmadd_ps(x_sum, w.shift, _mm512_load_ps(sums + r * 16)));
        }
      }
    }
  }

  const PackedMm& p_;
  const int64_t units_, block_bytes_, groups_, group_k_, group_steps_, row_tile_bytes_, row_tiles_, vectors_;
  Scratch<uint8_t> x_;  // [row tile][group][step][16 rows][64 bytes of k]
  const bool shifted_;
  Scratch<float> x_sums_;      // [m][groups], where needed
  Scratch<RowScale> x_scale_;  // [m], where x is quantized
};

}  // namespace
