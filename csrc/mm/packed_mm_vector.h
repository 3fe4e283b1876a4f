// The plan of every matmul on packed weights for a vector ISA. An Engine gives the width, the decoding and the
// multiply:
//
//   A panel is two vectors of rows of w; panels are shared out among threads. x is packed in tiles of up to kTileRows
//   rows, [tile][k / kStep][rows], so that a step of a tile is one run of broadcasts. Sums stay in registers:
//
//            panel: 2 vectors of n
//          +-----------+-----------+
//   step   |  weights, kStep of k  |
//   of k   +-----------+-----------+
//   tile   | rows x 2 accumulators |
//
//   Fused, up to kFusedRows rows of x, fewer where groups are small: weights are decoded in registers and multiplied at
//   once, with tiles of kFusedTile rows, for each tile anew; blocks of x stay in L2, and tiles share the fetching of
//   the next panel. Bound by reading w for one tile, then by the multiply. More rows: a chunk of k of a panel is
//   decoded once, into L1, and multiplied with all tiles of up to kBlockRows rows. The block goes through k in pieces
//   of x that stay in L2, with the sums of a run of panels, while the next piece comes. Bound by the multiply.
//     x as floats    scales go into the decoded weights: the sums of chunks simply add up
//     x as int8      weights are the codes themselves, scales multiply the int32 sums of each group
//
// Engine, x on an ISA over a format (mm/x_*.h): Vec (kLanes floats), Sum (kLanes products' sums, fp32 or int32), Raw (a
//   vector's rows of a unit of kUnitK columns; mm/units.h),
//   Weight (decoded: code - kOffset), X (kStep values of x, broadcast together), kMid (the zero point where none is
//   given), kInt8 (x is quantized to int8 per row before it is multiplied), kScaleLast (w has one scale a row, for the
//   whole sum), kTileRows, kFusedTile and kFusedRows (registers and the cost of decoding set them), and the functions
//   used below; chains(rows, vectors): how many independent sums of each element hide the latency of dot, as far as
//   registers go; kPairs: whether one row takes the steps of a unit in pairs. Where sums of 16 bits hold a few
//   products: Part, kFoldSteps (how many steps they hold) and fold, which adds a Part to a Sum.
#pragma once
#include <type_traits>

#include "base/parallel.h"
#include "formats/format.h"
#include "mm/packed_mm_row.h"
#include "rows/quantize_row.h"
#include "simd/prefetch.h"

namespace {

using aoq::PackedMm;

// A row of x as floats, zeros from k to steps.
template <class Lanes>
void widen_row(const void* x, aoq::Dtype dtype, int64_t k, int64_t steps, float* out) {
  int64_t i = 0;
  for (; i + Lanes::kLanes <= k; i += Lanes::kLanes) Lanes::store_f32(out + i, Lanes::load(x, dtype, i));
  for (; i < steps; ++i) out[i] = i < k ? load_float(x, dtype, i) : 0;
}

// Up to four rows of `steps` words to columns: out[step * stride + row].
template <class Lanes, class X>
void store_columns(const X* const (&rows)[4], int64_t count, int64_t steps, X* out, int64_t stride) {
  static_assert(sizeof(X) == 4);
  if (stride == 1) {
    std::memcpy(out, rows[0], static_cast<size_t>(steps) * 4);
    return;
  }
  int64_t step = 0;
  for (; step + Lanes::kLanes <= steps; step += Lanes::kLanes) {
    const void* const at[4] = {rows[0] + step, rows[1] + step, rows[2] + step, rows[3] + step};
    Lanes::store_columns(at, count, out + step * stride, stride);
  }
  for (; step < steps; ++step)
    for (int64_t row = 0; row < count; ++row) std::memcpy(out + step * stride + row, rows[row] + step, 4);
}

// The sum of a row of x over each group.
template <class Lanes>
void sum_groups(const PackedMm& p, const void* x, float* sums) {
  for (int64_t begin = 0; begin < p.k;) {
    const int64_t end = p.k - begin > p.group ? begin + p.group : p.k;
    auto sum = Lanes::set(0);
    int64_t k = begin;
    for (; k + Lanes::kLanes <= end; k += Lanes::kLanes) sum = Lanes::add(sum, Lanes::load(x, p.x.dtype, k));
    if (k < end) sum = Lanes::add(sum, Lanes::load_part(x, p.x.dtype, k, end - k));
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
  GroupScale(const PackedMm& p, int64_t groups, int64_t vector, int64_t group, bool shifted = true) {
    const int64_t row = vector * Engine::kLanes;
    const int64_t at = (row / aoq::kUnitN * groups + group) * aoq::kUnitN + row % aoq::kUnitN;
    scale = Engine::load(p.w.scales.scale, p.w.scales.dtype, at);
    if (!shifted) return;
    const auto zero =
        p.w.scales.zero_point ? Engine::load(p.w.scales.zero_point, p.w.scales.dtype, at) : Engine::set(Engine::kMid);
    shift = Engine::mul(Engine::sub(Engine::set(Engine::kOffset), zero), scale);
  }

  // Without a zero point, and with codes decoded around it, sums of x are not needed.
  static bool has_shift(const PackedMm& p) {
    return p.w.scales.zero_point != nullptr || Engine::kMid != Engine::kOffset;
  }
};

// A vector of columns of out: what every row of it takes, loaded once.
template <class Lanes>
class OutColumns {
 public:
  OutColumns(const PackedMm& p, const RowScale* x_scale, int64_t vector)
      : out_(p.out.data),
        dtype_(p.out.dtype),
        first_(vector * Lanes::kLanes),
        count_(p.n - first_ < Lanes::kLanes ? p.n - first_ : Lanes::kLanes),
        n_(p.n),
        rows_(x_scale),
        x_scale_(p.out.row_scale),
        x_scale_stride_(p.out.row_scale_stride),
        shifted_(p.x.asymmetric),
        biased_(p.out.bias != nullptr),
        w_sum_(shifted_ ? load(p.w.sum, aoq::Dtype::f32) : Lanes::set(0)),
        bias_(biased_ ? load(p.out.bias, p.out.bias_dtype) : Lanes::set(0)) {}

  // The sum of products of a row of x, with its scale and the bias, in out's dtype.
  void store(int64_t row, typename Lanes::Vec sum) const {
    if (rows_) {
      if (shifted_) sum = Lanes::fma(Lanes::set(-rows_[row].zero_point), w_sum_, sum);
      sum = Lanes::mul(sum, Lanes::set(rows_[row].scale));
    }
    if (x_scale_) sum = Lanes::mul(sum, Lanes::set(x_scale_[row * x_scale_stride_]));
    if (biased_) sum = Lanes::add(sum, bias_);
    Lanes::store(out_, dtype_, row * n_ + first_, sum, count_);
  }

 private:
  typename Lanes::Vec load(const void* data, aoq::Dtype dtype) const {
    return count_ == Lanes::kLanes ? Lanes::load(data, dtype, first_) : Lanes::load_part(data, dtype, first_, count_);
  }

  void* const out_;
  const aoq::Dtype dtype_;
  const int64_t first_, count_, n_;
  const RowScale* const rows_;  // where x is quantized
  const float* const x_scale_;  // where it came so, or null
  const int64_t x_scale_stride_;
  const bool shifted_, biased_;
  const typename Lanes::Vec w_sum_, bias_;
};

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

// What an engine adds products to: its Sum, or a narrower Part, which its sums take in every kFoldSteps.
template <class Engine, class = void>
struct PartOf {
  using Type = typename Engine::Sum;
  static constexpr int kFoldSteps = 0;
};
template <class Engine>
struct PartOf<Engine, std::void_t<typename Engine::Part>> {
  using Type = typename Engine::Part;
  static constexpr int kFoldSteps = Engine::kFoldSteps;
};

constexpr int kAllRows = 1 << 30;  // kFusedRows of an engine that decodes in registers whatever m is

inline int64_t at_least_one(int64_t value) { return value > 1 ? value : 1; }
inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// A vector of an engine may be half of a block's sixteen rows.
template <class Engine>
class VectorMm {
  using Vec = typename Engine::Vec;
  using Sum = typename Engine::Sum;
  using Part = typename PartOf<Engine>::Type;
  using Raw = typename Engine::Raw;
  using Weight = typename Engine::Weight;
  using X = typename Engine::X;
  static constexpr int kLanes = Engine::kLanes, kStep = Engine::kStep, kTileRows = Engine::kTileRows;
  static constexpr int kVectors = 2;                                          // of a panel
  static constexpr int kSteps = Engine::kUnitK / kStep;                       // of a unit
  static constexpr int64_t kFoldUnits = PartOf<Engine>::kFoldSteps / kSteps;  // whose products a Part holds, or 0: all
  static constexpr int kFusedTile = Engine::kFusedTile;  // rows of a tile where decoding takes registers too
  static constexpr int64_t kChunk = 16384 / (kSteps * 2 * kLanes * 4);  // units decoded at a time: half of L1
  static constexpr int64_t kUnitBytes = Engine::kUnitBytes;
  static constexpr int64_t kAhead = 2048 / kUnitBytes;       // units to prefetch ahead in the stream of codes
  static constexpr int64_t kBlockRows = 264;                 // of x, that share a decoded chunk
  static constexpr int64_t kRun = 8;                         // panels whose sums stay in L2: 264 KB
  static constexpr int64_t kBlockX = 524288;                 // bytes of x that stay in L2: a fused block
  static constexpr int64_t kPieceX = kBlockX / 2;            // or a piece, while the next one comes
  static constexpr int64_t kBlockTiles = 2 * Engine::kBits;  // fused, that one reading of w serves

 public:
  static void run(const PackedMm& p) { VectorMm(p).run(); }

 private:
  explicit VectorMm(const PackedMm& p)
      : p_(p),
        units_(aoq::ceil_div(p.k, Engine::kUnitK)),
        block_bytes_(Engine::block_bytes(p.k)),
        groups_(aoq::ceil_div(p.k, p.group)),
        steps_(units_ * kSteps),
        fused_(p.m <= clamp(Engine::kFusedRows * clamp(p.group, 1, 128) / 128, kFusedTile, Engine::kFusedRows)),
        tiles_(aoq::ceil_div(p.m, fused_ ? kFusedTile : kTileRows)),
        tile_rows_(p.m / tiles_),
        more_rows_(p.m % tiles_),
        vectors_(aoq::ceil_div(p.n, kLanes)),
        panels_(aoq::ceil_div(vectors_, 2)),
        // Sums of a group start at (kOffset - kMid) times the sum of x, of integers as far as int32 goes; a zero point
        // takes a multiplication.
        starts_((Engine::kInt8 ? p.group <= 65536 : fused_) && !p.w.scales.zero_point &&
                GroupScale<Engine>::has_shift(p)),
        shifted_(!starts_ && (fused_ || Engine::kInt8) && GroupScale<Engine>::has_shift(p)),
        x_(p.m * steps_),
        sums_(starts_ || shifted_ ? p.m * groups_ : 0),
        x_scale_(Engine::kInt8 ? p.m : 0) {}

  const RowScale* x_scale() const { return Engine::kInt8 ? x_scale_.get() : nullptr; }

  // Rows are shared out evenly: the first tiles have one more.
  int64_t first_row(int64_t tile) const { return tile_rows_ * tile + (tile < more_rows_ ? tile : more_rows_); }

  void run() {
    auto pack = [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) pack_tile(first_row(tile), first_row(tile + 1));
    };
    parallel(tiles_, at_least_one(65536 / (p_.k * kTileRows)), pack);
    if constexpr (Engine::kFusedRows < kAllRows)
      fused_ ? run_fused() : run_blocked();
    else
      run_fused();
  }

  // Below about 5 us of work a second thread costs more than it brings.
  int64_t grain(int64_t rows) const { return at_least_one(16384 / (steps_ * 2 * (rows < 4 ? 4 : rows))); }

  // Each thread its own panels, all rows of x; where panels are few, pairs of a panel and a block of rows.
  bool by_panels(int64_t blocks) const { return blocks == 1 || panels_ >= 8 * aoq::num_threads(); }

  // Where k is long a block in L2 would be of few rows, and each block reads all of w: k is then taken in pieces.
  void run_fused() const {
    const int64_t rows_bytes = kFusedTile * steps_ * static_cast<int64_t>(sizeof(X));
    const int64_t pieces = tiles_ > kBlockTiles ? aoq::ceil_div(kBlockTiles * rows_bytes, kBlockX) : 1;
    const int64_t block_tiles = at_least_one(kBlockX * pieces / rows_bytes);
    const int64_t blocks = aoq::ceil_div(tiles_, block_tiles);
    const Scratch<float> sums(pieces > 1 ? p_.m * panels_ * 2 * kLanes : 0);
    auto block = [&](int64_t index, int64_t begin, int64_t end) {
      for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t panel = begin; panel < end; ++panel) {
          const int64_t last = tiles_ * (index + 1) / blocks;
          Pass pass{panel,
                    panel + 1 < end ? panel + 1 : begin,
                    tiles_ * index / blocks,
                    0,
                    0,
                    units_ * piece / pieces,
                    units_ * (piece + 1) / pieces,
                    sums.get()};
          for (pass.tiles = last - pass.tile; pass.turn < pass.tiles; ++pass.tile, ++pass.turn) fused_rows(pass);
        }
    };
    auto columns = [&](int64_t begin, int64_t end) {
      for (int64_t index = 0; index < blocks; ++index) block(index, begin, end);
    };
    auto pairs = [&](int64_t begin, int64_t end) {
      for (int64_t at = begin, panel = at % panels_; at < end; at += panels_ - panel, panel = 0)
        block(at / panels_, panel, panel + end - at < panels_ ? panel + end - at : panels_);
    };
    by_panels(blocks) ? parallel(panels_, grain(p_.m), columns)
                      : parallel(panels_ * blocks, grain(p_.m / blocks), pairs);
  }

  void run_blocked() const {
    const int64_t blocks = aoq::ceil_div(p_.m, kBlockRows);
    const int64_t rows = (aoq::ceil_div(tiles_, blocks) + 1) * kTileRows;
    const bool columns = by_panels(blocks);
    auto multiply = [&](int64_t begin, int64_t end) {
      const Scratch<float> memory(kChunk * kSteps * 2 * kLanes + rows * 2 * kLanes * (columns ? kRun : 1));
      const int64_t runs = columns ? aoq::ceil_div(end - begin, kRun) : end - begin;
      for (int64_t run = 0, at = begin; run < runs; ++run) {
        const int64_t count = begin + (end - begin) * (run + 1) / runs - at;
        for (int64_t i = 0; i < (columns ? blocks : 1); ++i) {
          const int64_t index = columns ? i : at / panels_, panel = columns ? at : at % panels_;
          const int64_t next = columns ? (i + 1) % blocks : at + 1 < end ? (at + 1) / panels_ : index;
          const Block rows{tiles_ * index / blocks, tiles_ * (index + 1) / blocks, tiles_ * next / blocks};
          block(panel, panel + count, rows, memory.get());
        }
        at += count;
      }
    };
    columns ? parallel(panels_, grain(p_.m), multiply) : parallel(panels_ * blocks, grain(rows), multiply);
  }

  // x[first:last] to [step][row], zeros after k, and the sums over groups.
  void pack_tile(int64_t first, int64_t last) const {
    const Scratch<int8_t> quantized(Engine::kInt8 ? units_ * Engine::kUnitK + 16 : 0);
    const Scratch<X> memory(4 * steps_);
    const RowsOfX given(p_, 4);
    for (int64_t row = first; row < last; row += 4) {
      const int64_t count = last - row < 4 ? last - row : 4;
      const X* rows[4];
      for (int64_t i = 0; i < 4; ++i)
        rows[i] = i < count ? words_of_row(row + i, given.load(row + i, i), quantized.get(), memory.get() + i * steps_)
                            : rows[0];
      store_columns<Engine>(rows, count, steps_, x_.get() + first * steps_ + (row - first), last - first);
    }
  }

  // A row of x as steps_ words, in `memory` unless x is made of them; with it the sums over groups.
  const X* words_of_row(int64_t row, const void* x, int8_t* codes, X* memory) const {
    float* sums = sums_.get() + row * groups_;
    const X* words;
    if constexpr (Engine::kInt8) {
      x_scale_.get()[row] = quantize_row(x, p_.x.dtype, p_.k, p_.x.asymmetric, aoq::Dtype::f32, codes);
      std::memset(codes + p_.k, 0, static_cast<size_t>(units_ * Engine::kUnitK - p_.k));
      if (starts_ || shifted_) sum_groups(p_, codes, sums);
      words = Engine::words(codes, steps_, memory);
    } else {
      if (starts_ || shifted_) sum_groups<Engine>(p_, x, sums);
      words = Engine::words(x, p_.x.dtype, p_.k, steps_, memory);
    }
    if (starts_)
      for (int64_t group = 0; group < groups_; ++group)
        Engine::make_start(sums + group, Engine::kOffset - Engine::kMid);
    return words;
  }

  // Vector v of a panel. Where the last panel has one alone, it is computed twice: code for a half of a panel would
  // take as long to compile again.
  int64_t vector_of(int64_t panel, int v) const { return 2 * panel + v < vectors_ ? 2 * panel + v : vectors_ - 1; }

  const uint8_t* codes(int64_t vector) const {
    constexpr int64_t kPerBlock = aoq::kUnitN / kLanes;
    return p_.w.stream + vector / kPerBlock * block_bytes_ + vector % kPerBlock * (kLanes * 4);
  }

  // Where a vector of this panel reads kAhead units from now; near its end, at the start of the next panel's.
  const uint8_t* ahead_of(int64_t vector, int64_t unit) const {
    const int64_t ahead = unit + kAhead;
    return ahead < units_ ? codes(vector) + ahead * kUnitBytes : codes(vector + 2) + (ahead - units_) * kUnitBytes;
  }

  int64_t unit_end(int64_t group) const {
    return group + 1 == groups_ ? units_ : (group + 1) * p_.group / Engine::kUnitK;
  }

  // What the sums of a row start at in a group.
  Sum start(int64_t row, int64_t group) const { return Engine::start(sums_.get() + row * groups_ + group); }

#define AOQ_FOR_ROWS(call) \
  switch (rows) {          \
    AOQ_ROWS(1, call)      \
    AOQ_ROWS(2, call)      \
    AOQ_ROWS(3, call)      \
    AOQ_ROWS(4, call)      \
    AOQ_ROWS(5, call)      \
    AOQ_ROWS(6, call)      \
    AOQ_ROWS(7, call)      \
    AOQ_ROWS(8, call)      \
    AOQ_ROWS(9, call)      \
    AOQ_ROWS(10, call)     \
    AOQ_ROWS(11, call)     \
    AOQ_ROWS(12, call)     \
  }                        \
  static_assert(kTileRows <= 12, "a case for each number of rows")
#define AOQ_ROWS(r, call)                                        \
  case r:                                                        \
    if constexpr (constexpr int kRows = r; r <= kTileRows) call; \
    break;

  // A tile of x times units [begin, end) of a panel, one of several in turn; `next` is the panel after it, sums what
  // pieces of k leave to the next ones: [panel][m][vector].
  struct Pass {
    int64_t panel, next, tile, tiles, turn, begin, end;
    float* sums;
  };

  void fused_rows(const Pass& pass) const {
    const int64_t row = first_row(pass.tile), rows = first_row(pass.tile + 1) - row;
    AOQ_FOR_ROWS((fused<kRows>(pass, row)));
  }

  static Part zero_part() {
    if constexpr (kFoldUnits == 0)
      return Engine::zero();
    else
      return Part{};
  }

  // Products of a unit, in kChains sums in turn.
  template <int kRows, int kChains>
  [[gnu::always_inline]] void add_unit(const Raw (&raw)[kVectors], const X* x,
                                       Part (&part)[kChains][kRows][kVectors]) const {
#pragma GCC unroll 32
    for (int j = 0; j < kSteps; ++j) {
      Weight weight[kVectors];
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) weight[v] = Engine::decode(raw[v], j);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v)
          part[j % kChains][r][v] = Engine::dot(part[j % kChains][r][v], weight[v], x + j * kRows + r);
    }
  }

  // The same of one row, two steps at a time, which are added up before the one sum takes them: it waits for a single
  // addition a unit, and no registers go to more sums.
  [[gnu::always_inline]] void add_unit_by_pairs(const Raw (&raw)[kVectors], const X* x,
                                                Part (&part)[1][1][kVectors]) const {
    Part unit[kVectors];
#pragma GCC unroll 32
    for (int j = 0; j < kSteps; j += 2)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const Part first = Engine::product(Engine::decode(raw[v], j), x + j);
        const Part pair = Engine::dot(first, Engine::decode(raw[v], j + 1), x + j + 1);
        unit[v] = j == 0 ? pair : Engine::add(unit[v], pair);
      }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) part[0][0][v] = Engine::add(part[0][0][v], unit[v]);
  }

  // Where the codes lie that a pass fetches. The only tile of a panel fetches what it reads itself some units from now;
  // of several each fetches a share of the next panel into L2, a unit every so many of its own.
  struct Ahead {
    static constexpr int kLines = kLanes * 4 < 64 ? 1 : kVectors;  // halves of a line are fetched together
    const uint8_t* own[kLines];
    const uint8_t* next;
    int64_t next_vector, turn;
  };

  Ahead ahead_of_pass(const Pass& pass) const {
    const int64_t share = (pass.end - pass.begin) * pass.turn / pass.tiles;
    return {{}, codes(2 * pass.next) + (pass.begin + share) * kUnitBytes, codes(1) - codes(0), pass.tiles};
  }

  // What goes with a unit.
  [[gnu::always_inline]] void fetch(const Pass& pass, Ahead& ahead) const {
    if (pass.tiles == 1) {
#pragma GCC unroll 2
      for (int i = 0; i < Ahead::kLines; ++i, ahead.own[i - 1] += kUnitBytes)
#pragma GCC unroll 4
        for (int64_t line = 0; line < kUnitBytes; line += 64) prefetch(ahead.own[i] + line);
    } else if (--ahead.turn == 0) {
      ahead.turn = pass.tiles;
#pragma GCC unroll 4
      for (int64_t line = 0; line < kUnitBytes; line += 64) {
        prefetch_far(ahead.next + line);
        prefetch_far(ahead.next + line + ahead.next_vector);
      }
      ahead.next += kUnitBytes;
    }
  }

  // Sums of a group, or of a piece of one, before its products: zeros, or what the sum of x says.
  template <int kRows>
  [[gnu::always_inline]] void start_sums(int64_t row, int64_t group, bool starts, Sum (&sum)[kRows][kVectors]) const {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Engine::zero();
    if (!starts) return;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Sum first = start(row + r, group);
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) sum[r][v] = first;
    }
  }

  // Products of units [unit, end): into the sums themselves, or into parts that the sums take in before they overflow.
  template <int kRows>
  [[gnu::always_inline]] void add_units(const Pass& pass, const uint8_t* const (&stream)[kVectors], int64_t& unit,
                                        int64_t end, const X*& x, Ahead& ahead, Sum (&sum)[kRows][kVectors]) const {
    constexpr int kChains = kRows == 1 && Engine::kPairs ? 1 : Engine::chains(kRows, kVectors);
    while (unit < end) {
      const int64_t fold = kFoldUnits && end - unit > kFoldUnits ? unit + kFoldUnits : end;
      Part part[kChains][kRows][kVectors];
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
          for (int v = 0; v < kVectors; ++v) {
            part[c][r][v] = zero_part();
            if constexpr (kFoldUnits == 0)
              if (c == 0) part[c][r][v] = sum[r][v];
          }
      for (; unit < fold; ++unit, x += kSteps * kRows) {
        Raw raw[kVectors];
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) raw[v] = Engine::load_raw(stream[v], unit);
        fetch(pass, ahead);
        if constexpr (kRows == 1 && Engine::kPairs)
          add_unit_by_pairs(raw, x, part);
        else
          add_unit<kRows, kChains>(raw, x, part);
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 12
          for (int c = 1; c < kChains; ++c) part[0][r][v] = Engine::add(part[0][r][v], part[c][r][v]);
          if constexpr (kFoldUnits == 0)
            sum[r][v] = part[0][r][v];
          else
            sum[r][v] = Engine::fold(sum[r][v], part[0][r][v]);
        }
    }
  }

  // A group's sums of products into those of a row; `shifted`: with what its sum of x brings.
  template <int kRows>
  [[gnu::always_inline]] void scale_sums(int64_t panel, int64_t row, int64_t group, bool shifted,
                                         const Sum (&sum)[kRows][kVectors], Vec (&total)[kRows][kVectors]) const {
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) {
      const GroupScale<Engine> w(p_, groups_, vector_of(panel, v), group, shifted_);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        total[r][v] = Engine::fma(Engine::to_float(sum[r][v]), w.scale, total[r][v]);
        if (shifted)
          total[r][v] = Engine::fma(Engine::set(sums_.get()[(row + r) * groups_ + group]), w.shift, total[r][v]);
      }
    }
  }

  template <int kRows>
  void fused(const Pass& pass, int64_t row) const {
    const int64_t panel = pass.panel;
    const uint8_t* stream[kVectors];
    for (int v = 0; v < kVectors; ++v) stream[v] = codes(vector_of(panel, v));
    float* const sums = pass.sums + (panel * p_.m + row) * kVectors * kLanes;  // of earlier pieces of k
    Vec total[kRows][kVectors];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v)
        total[r][v] = pass.begin ? Engine::load_f32(sums + (r * kVectors + v) * kLanes) : Engine::set(0);
    const X* x = x_.get() + row * steps_ + pass.begin * kSteps * kRows;
    Ahead ahead = ahead_of_pass(pass);
    for (int64_t group = pass.begin * Engine::kUnitK / p_.group, unit = pass.begin; unit < pass.end;) {
      // A piece of a group: 16384 products of 8 bits each fit an int32 sum.
      constexpr int64_t kPiece = 16384 / Engine::kUnitK;
      const int64_t stop = unit_end(group) < pass.end ? unit_end(group) : pass.end;
      const int64_t end = stop - unit < kPiece ? stop : unit + kPiece;
      const bool whole = end == unit_end(group);
#pragma GCC unroll 2
      for (int i = 0; i < Ahead::kLines; ++i) ahead.own[i] = ahead_of(2 * panel + i, unit);
      Sum sum[kRows][kVectors];
      start_sums<kRows>(row, group, starts_ && whole, sum);
      add_units<kRows>(pass, stream, unit, end, x, ahead, sum);
      scale_sums<kRows>(panel, row, group, shifted_ && whole, sum, total);
      group += whole;
    }
    if (pass.end < units_) {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) Engine::store_f32(sums + (r * kVectors + v) * kLanes, total[r][v]);
      return;
    }
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v)
      if (2 * panel + v < vectors_) {
        const OutColumns<Engine> out(p_, x_scale(), 2 * panel + v);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) out.store(row + r, total[r][v]);
      }
  }

  // Tiles [first, last) of x; `next` is the first one of the block after it.
  struct Block {
    int64_t first, last, next;
  };

  // A piece of k of a block, in units; and which the piece after it is, of which the panel numbered `turn` of `turns`
  // that pass by fetches its share.
  struct Piece {
    int64_t begin, end, next_tile, next_begin, turn, turns;
  };

  // Panels [begin, end) of out, rows of a block. memory: a decoded chunk, then sums, [panel][row][vector].
  void block(int64_t begin, int64_t end, const Block& block, float* memory) const {
    const int64_t row_begin = first_row(block.first), rows = first_row(block.last) - row_begin;
    float* const sums = memory + kChunk * kSteps * 2 * kLanes;
    const int64_t panel_sums = rows * 2 * kLanes;
    std::memset(sums, 0, static_cast<size_t>((end - begin) * panel_sums) * sizeof(float));
    const int64_t unit_x = rows * kSteps * static_cast<int64_t>(sizeof(X));
    const int64_t fitting = kPieceX / unit_x / kChunk * kChunk;
    const int64_t piece = units_ * unit_x <= kBlockX ? units_ : fitting > kChunk ? fitting : kChunk;
    for (int64_t unit = 0; unit < units_; unit += piece) {
      const bool last = unit + piece >= units_;
      Piece of_k{unit,       last ? units_ : unit + piece, last ? block.next : block.first, last ? 0 : unit + piece, 0,
                 end - begin};
      for (; of_k.turn < of_k.turns; ++of_k.turn) {
        const int64_t panel = begin + of_k.turn;
        float* const at = sums + of_k.turn * panel_sums;
        accumulate(panel, block, of_k, memory, at);
      }
    }
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t v = 0; v < 2 && 2 * panel + v < vectors_; ++v) {
        const GroupScale<Engine> w(p_, groups_, 2 * panel + v, 0, false);
        const OutColumns<Engine> out(p_, x_scale(), 2 * panel + v);
        for (int64_t row = 0; row < rows; ++row) {
          Vec sum = Engine::load_f32(sums + (panel - begin) * panel_sums + (row * 2 + v) * kLanes);
          if constexpr (Engine::kScaleLast) sum = Engine::mul(sum, w.scale);
          out.store(row_begin + row, sum);
        }
      }
  }

  // Adds a piece of k to the sums of a panel.
  void accumulate(int64_t panel, const Block& block, const Piece& piece, float* weights, float* sums) const {
    const int64_t first = block.first, last = block.last, begin = piece.begin, end = piece.end;
    const bool moves = piece.next_tile != first || piece.next_begin != begin;
    int64_t group = begin * Engine::kUnitK / p_.group;
    for (int64_t unit = begin; unit < end;) {
      int64_t chunk_end = unit + kChunk < end ? unit + kChunk : end;
      const bool whole_group = unit == 0 || unit == unit_end(group - 1);
      GroupScale<Engine> scale[kVectors];
      if constexpr (Engine::kInt8) {
        chunk_end = chunk_end < unit_end(group) ? chunk_end : unit_end(group);
        for (int v = 0; v < kVectors; ++v)
          scale[v] = GroupScale<Engine>(p_, groups_, vector_of(panel, v), group, shifted_);
      }
      decode_chunk(panel, unit, chunk_end, weights);
      // While this chunk is multiplied the next one comes into L2, a share with each tile.
      const bool turn = chunk_end == end;
      const uint8_t* next = codes(2 * panel + (turn ? 2 : 0)) + (turn ? begin : chunk_end) * kUnitBytes;
      const uint8_t* next_vector = codes(2 * panel + (turn ? 3 : 1)) + (turn ? begin : chunk_end) * kUnitBytes;
      const int64_t share = aoq::ceil_div((chunk_end - unit) * kUnitBytes, last - first);
      for (int64_t row = first_row(first), at = row, tile = first; tile < last; row = first_row(++tile)) {
        const int64_t rows = first_row(tile + 1) - row;
        for (int64_t i = (tile - first) * share; i < (tile - first + 1) * share; i += 64) {
          prefetch_far(next + i);
          prefetch_far(next_vector + i);
        }
        if (moves) fetch_x(piece, tile - first, unit - begin, chunk_end - unit);
        const X* x = x_.get() + row * steps_ + unit * kSteps * rows;
        float* tile_sums = sums + (row - at) * 2 * kLanes;
        const int64_t steps = (chunk_end - unit) * kSteps;
        if constexpr (Engine::kInt8) {
          // The sum of x over a group counts once.
          const int64_t sum_row = whole_group ? row : -1;
          AOQ_FOR_ROWS((scale_tile<kRows>(x, weights, steps, tile_sums, scale, sum_row, group)));
        } else {
          AOQ_FOR_ROWS((add_tile<kRows>(x, weights, steps, tile_sums)));
        }
      }
      unit = chunk_end;
      while (group < groups_ && unit >= unit_end(group)) ++group;
    }
  }
#undef AOQ_FOR_ROWS
#undef AOQ_ROWS

  // A share of what the next piece multiplies where this one multiplies `units` units from `offset` on.
  void fetch_x(const Piece& piece, int64_t tile, int64_t offset, int64_t units) const {
    if ((tile += piece.next_tile) >= tiles_) return;
    const int64_t row = first_row(tile), rows = first_row(tile + 1) - row;
    const char* x =
        reinterpret_cast<const char*>(x_.get() + row * steps_ + (piece.next_begin + offset) * kSteps * rows);
    const int64_t bytes = units * kSteps * rows * static_cast<int64_t>(sizeof(X));
    for (int64_t i = bytes * piece.turn / piece.turns; i < bytes * (piece.turn + 1) / piece.turns; i += 64)
      prefetch_far(x + i);
  }

  void decode_chunk(int64_t panel, int64_t unit, int64_t chunk_end, float* weights) const {
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* stream = codes(vector_of(panel, v));
      float* out = weights + v * kLanes;
      for (int64_t u = unit, group = unit * Engine::kUnitK / p_.group; u < chunk_end; ++group) {
        const int64_t last = unit_end(group) < chunk_end ? unit_end(group) : chunk_end;
        const GroupScale<Engine> w(p_, groups_, vector_of(panel, v), group);
        for (; u < last; ++u) {
          const Raw raw = Engine::load_raw(stream, u);
#pragma GCC unroll 32
          for (int j = 0; j < kSteps; ++j, out += kVectors * kLanes)
            if constexpr (Engine::kInt8 || Engine::kScaleLast)
              Engine::store_weight(out, Engine::decode(raw, j));
            else
              Engine::store_weight(out, Engine::decode_scaled(raw, j, w.scale, w.shift));
        }
      }
    }
  }

  template <int kRows>
  void add_products(Sum (&sum)[kRows][kVectors], const X* x, const float* weights, int64_t steps) const {
    for (int64_t step = 0; step < steps; ++step, x += kRows, weights += kVectors * kLanes) {
      Weight weight[kVectors];
      for (int v = 0; v < kVectors; ++v) weight[v] = Engine::load_weight(weights + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = Engine::dot(sum[r][v], weight[v], x + r);
    }
  }

  // Not inlined, here and below: of the registers that a tile's sums leave free, none go to what is around the loop.
  template <int kRows>
  [[gnu::noinline]] void add_tile(const X* x, const float* weights, int64_t steps, float* sums) const {
    Sum sum[kRows][kVectors];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Engine::load_f32(sums + (r * 2 + v) * kLanes);
    add_products<kRows>(sum, x, weights, steps);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) Engine::store_f32(sums + (r * 2 + v) * kLanes, sum[r][v]);
  }

  // sum_row: the tile's first row, or -1 where sums of x do not count.
  template <int kRows>
  [[gnu::noinline]] void scale_tile(const X* x, const float* weights, int64_t steps, float* sums,
                                    const GroupScale<Engine>* scale, int64_t sum_row, int64_t group) const {
    Sum sum[kRows][kVectors];
    if (starts_ && sum_row >= 0) {
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = start(sum_row + r, group);
    } else {
      for (auto& of_row : sum)
        for (Sum& value : of_row) value = Engine::zero();
    }
    add_products<kRows>(sum, x, weights, steps);
    const float* x_sums = shifted_ && sum_row >= 0 ? sums_.get() + sum_row * groups_ + group : nullptr;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        float* at = sums + (r * 2 + v) * kLanes;
        Vec total = Engine::fma(Engine::to_float(sum[r][v]), scale[v].scale, Engine::load_f32(at));
        if (x_sums) total = Engine::fma(Engine::set(x_sums[r * groups_]), scale[v].shift, total);
        Engine::store_f32(at, total);
      }
  }

  const PackedMm& p_;
  const int64_t units_, block_bytes_, groups_, steps_;
  const bool fused_;
  const int64_t tiles_, tile_rows_, more_rows_, vectors_, panels_;
  const bool starts_, shifted_;
  Scratch<X> x_;               // [tile][step][row]
  Scratch<float> sums_;        // [m][groups], where needed: of x, or what sums start at
  Scratch<RowScale> x_scale_;  // [m], where x is quantized
};

// An engine with tiles of a few rows: where speed matters less than how long it takes to compile.
template <class Engine>
struct FewRows : Engine {
  static constexpr int kTileRows = Engine::kTileRows < 4 ? Engine::kTileRows : 4;
  static constexpr int kFusedTile = Engine::kFusedTile < kTileRows ? Engine::kFusedTile : kTileRows;
};

// Takes whole units of the format where groups are made of them.
template <template <class, bool> class Engine, class Format>
void run_vector_mm(const PackedMm& p) {
  constexpr int kUnitK = Engine<Format, false>::kUnitK;
  if constexpr (aoq::Planes<Format::kBits>::kPhases > 1)
    if (p.group < p.k && p.group % kUnitK) return VectorMm<FewRows<Engine<Format, true>>>::run(p);
#if defined(AOQ_FEW_ROWS)  // for sanitizers: with them each number of rows takes three times as long to compile
  VectorMm<FewRows<Engine<Format, false>>>::run(p);
#else
  VectorMm<Engine<Format, false>>::run(p);
#endif
}

}  // namespace
