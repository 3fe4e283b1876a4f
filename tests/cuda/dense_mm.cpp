// The kernels of int8_mm and fp8_mm on the host: what CUTLASS says of each instance, and the epilogues themselves,
// thread by thread, on products that tell where they are from.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#if defined(AOQ_SM90)
#include "mm/cuda/dense_mm_sm90.cuh"
#else
#include "mm/cuda/dense_mm_sm80.cuh"
#endif
#include "mm/cuda/dense_mm_plan.h"

using aoq::DenseMm;
using aoq::Dtype;

int checked = 0;

template <class... Parts>
void fail(const char* format, Parts... parts) {
  std::printf(format, parts...);
  std::printf("\n");
  std::exit(1);
}

// Operands whose results fp32 holds exactly, so that there is one right rounding.
struct Operands {
  DenseMm p{};
  std::vector<float> x_scale, x_zero, w_sum, scale;
  std::vector<uint16_t> bias;
  std::vector<uint8_t> out;

  Operands(int64_t m, int64_t n, int64_t k, Dtype out_dtype, bool asymmetric, bool with_bias) {
    for (int64_t i = 0; i < m; ++i) x_scale.push_back(1.0f / (1 << i % 3)), x_zero.push_back(i % 5);
    for (int64_t i = 0; i < n; ++i) {
      scale.push_back(1.0f / (16 << i % 4)), w_sum.push_back(i % 7);
      bias.push_back(float_to_f16(i % 11));
    }
    out.assign(4 * m * n, 0xa5);
    p.m = m, p.n = n, p.k = k;
    p.x_scale = x_scale.data(), p.x_scale_stride = 1;
    p.x_zero = asymmetric ? x_zero.data() : nullptr;
    p.scale = scale.data(), p.scale_dtype = Dtype::f32;
    p.w_sum = asymmetric ? w_sum.data() : nullptr;
    p.bias = with_bias ? bias.data() : nullptr, p.bias_dtype = Dtype::f16;
    p.out = out.data(), p.out_dtype = out_dtype;
    p.multiprocessors = 132;
  }

  static int product(int64_t m, int64_t n) { return static_cast<int>((m % 61) * 67 + n % 67 - 2000); }
  float wanted(int64_t m, int64_t n) const {
    const double shift = p.x_zero ? x_zero[m] * w_sum[n] : 0, added = p.bias ? n % 11 : 0;
    return static_cast<float>(x_scale[m] * (scale[n] * product(m, n) - shift) + added);
  }
};

#if defined(AOQ_SM90)

// As CollectiveEpilogue::store gives a thread's sums to the epilogue.
template <class Config>
void check_epilogue(const Operands& o) {
  using namespace cute;
  using Tile = typename Config::Tile;
  using Epilogue = typename Config::Epilogue;
  using EpilogueTile = typename Epilogue::EpilogueTile;
  using Bits = typename Config::Fusion::Bits;
  constexpr int kFragment = Epilogue::DispatchPolicy::FragmentSize;
  const int64_t rows = Config::kSwapped ? o.p.n : o.p.m, columns = Config::kSwapped ? o.p.m : o.p.n;
  typename Config::Kernel::TiledMma mma;
  const int threads = size(mma);
  std::vector<int> seen(o.p.m * o.p.n);
  for (int tile_i = 0; tile_i * size<0>(Tile{}) < rows; ++tile_i)
    for (int tile_j = 0; tile_j * size<1>(Tile{}) < columns; ++tile_j) {
      typename Config::Fusion::SharedStorage shared;
      typename Config::Fusion fusion(o.p, shared);
      auto each = [&](auto visit) {
        for (int thread = 0; thread < threads; ++thread) {
          auto copy = make_tiled_copy_S(Copy_Atom<typename Epilogue::CopyOpR2S, Bits>{},
                                        make_tiled_copy_C_atom(typename Epilogue::CopyAtomC{}, mma));
          auto part = copy.get_slice(thread);
          auto absolute = local_tile(make_identity_tensor(make_shape(int(rows), int(columns))), take<0, 2>(Tile{}),
                                     make_coord(tile_i, tile_j));
          auto coordinates = part.partition_S(flat_divide(absolute, EpilogueTile{}));
          auto whole = make_coord(int(rows), int(columns));
          auto none = make_tensor<Bits>(Layout<_1>{});
          cutlass::epilogue::fusion::detail::ConsumerStoreArgs args(
              make_shape(int(rows), int(columns), 64, 1), Tile{}, make_coord(tile_i, tile_j, 0, 0), mma, EpilogueTile{},
              copy, make_coord_tensor(absolute.layout()), whole - absolute(_0{}),
              make_coord_tensor(coordinates.layout()), whole - coordinates(_0{}), none, thread);
          auto callbacks = fusion.template get_consumer_store_callbacks<true>(args);
          visit(callbacks, part, thread, coordinates);
        }
      };
      each([](auto& callbacks, auto&, int, auto&) { callbacks.begin(); });
      each([&](auto& callbacks, auto& part, int thread, auto& coordinates) {
        // Where each of the thread's sums is, as wgmma leaves them.
        auto positions = mma.get_slice(thread).partition_C(make_identity_tensor(take<0, 2>(Tile{})));
        auto sums = partition_fragment_C(mma, take<0, 2>(Tile{}));
        auto sources = make_tensor<int64_t>(sums.layout());
        auto products = make_tensor<typename Config::Sum>(sums.layout());
        for (int e = 0; e < size(sums); ++e) {
          const int64_t i = tile_i * size<0>(Tile{}) + get<0>(positions(e));
          const int64_t j = tile_j * size<1>(Tile{}) + get<1>(positions(e));
          const int64_t m = Config::kSwapped ? j : i, n = Config::kSwapped ? i : j;
          const bool inside = i < rows && j < columns;
          sources(e) = inside ? m * o.p.n + n : -1;
          products(e) = inside ? Operands::product(m, n) : -1;
        }
        auto tiled = part.retile_S(products);
        auto from = part.retile_S(sources);
        auto fragments = recast<cutlass::Array<typename Config::Sum, kFragment>>(tiled);
        const int mma_m = size<0>(Tile{}) / size<1>(tiled), mma_n = size<1>(Tile{}) / size<2>(tiled);
        const int epi_m = size<0>(EpilogueTile{}), epi_n = size<1>(EpilogueTile{});
        const int values = size(take<0, 3>(coordinates.layout()));
        if (epi_m != mma_m || mma_n % epi_n) fail("the test does not walk this epilogue's tiles");
        for (int n = 0; n < size<4>(coordinates); ++n)
          for (int m = 0; m < size<3>(coordinates); ++m)
            for (int v = 0; v < values / kFragment; ++v) {
              const int at = n % (mma_n / epi_n) * (values / kFragment) + v;
              const auto bits = callbacks.visit(fragments(_, m, n * epi_n / mma_n)(at), v, m, n);
              for (int e = 0; e < kFragment; ++e) {
                const int64_t source = from(_, m, n * epi_n / mma_n)(at * kFragment + e);
                if (source < 0) continue;
                ++seen[source];
                ++checked;
                const float wanted = o.wanted(source / o.p.n, source % o.p.n);
                const uint16_t right = o.p.out_dtype == Dtype::bf16 ? float_to_bf16(wanted) : float_to_f16(wanted);
                const uint16_t got = cutlass::bfloat16_t(bits[e]).raw();
                if (got != right)
                  fail("out[%d, %d]: %04x, wanted %04x", int(source / o.p.n), int(source % o.p.n), got, right);
              }
            }
      });
    }
  for (const int times : seen)
    if (times != 1) fail("a value is given %d times", times);
}

// What a block does in turn: columns [k, k + count) of a tile, in steps of 128.
struct Part {
  int i, j;
  uint32_t k, count;
};

// The parts of each block, by the scheduler's own code.
template <class Config>
std::vector<std::vector<Part>> walk(const typename Config::Arguments& args) {
  using Scheduler = typename Config::Kernel::TileScheduler;
  using cute::size;
  typename Config::Tile tile;
  typename Config::Cluster cluster;
  const auto grid = [&](const auto& params) {
    const auto shape =
        Scheduler::get_grid_shape(params, args.problem_shape, tile, cluster, args.hw_info, args.scheduler);
    return shape.x * shape.y * shape.z;
  };
  std::vector<std::vector<Part>> blocks;
  if constexpr (Config::kTile.stream_k) {
    const auto params =
        Scheduler::to_underlying_arguments(args.problem_shape, tile, cluster, args.hw_info, args.scheduler, nullptr);
    blocks.resize(grid(params));
    for (uint64_t block = 0; block < blocks.size(); ++block) {
      uint32_t start = 0;
      for (uint64_t at = block;; at += blocks.size()) {
        auto work = Scheduler::get_current_work_for_linear_idx(start, at, {}, params);
        if (!work.is_valid()) break;
        do {
          blocks[block].push_back({work.M_idx, work.N_idx, uint32_t(work.K_idx), work.k_tile_count});
          // The workspace has room for the sums of the first tiles.
          if (Scheduler::requires_fixup(params, work) && Scheduler::output_tile_index(params, work) >= params.sk_tiles_)
            fail("the workspace has no room for a tile's sums");
        } while (Scheduler::continue_current_work_for_linear_idx(at, start, {}, work, params));
      }
    }
  } else {
    const auto params =
        Scheduler::to_underlying_arguments(args.problem_shape, tile, cluster, args.hw_info, args.scheduler);
    constexpr int side_i = size<0>(cluster), side_j = size<1>(cluster);
    const bool along_j = params.raster_order_ == Scheduler::RasterOrder::AlongN;
    blocks.resize(grid(params));
    for (uint64_t at = 0; at < params.blocks_per_problem_; ++at) {
      const int i = along_j ? at % side_i : at / side_j % side_i, j = along_j ? at / side_i % side_j : at % side_j;
      const auto [tile_i, tile_j] = Scheduler::get_work_idx_m_and_n(
          params.divmod_cluster_shape_minor_.divide(at), params.divmod_cluster_shape_major_,
          params.divmod_cluster_shape_minor_, params.divmod_cluster_blk_major_, params.log_swizzle_size_,
          params.raster_order_, i, j);
      blocks[at % blocks.size()].push_back(
          {tile_i, tile_j, 0, uint32_t(aoq::ceil_div(cute::get<2>(args.problem_shape), 128))});
    }
  }
  return blocks;
}

// Each step of each tile is made once, in turns as the plan counts them, and no block waits for one that waits for it.
template <class Config>
void check_schedule(const char* name) {
  using cute::get, cute::size;
  constexpr int kSms = 132;
  constexpr int side = size(typename Config::Cluster{});
  if ((side == 2) != Config::kTile.pairs) fail("%s: is a pair, or is not", name);
  constexpr int shapes[][3] = {{1, 8192, 64},      {17, 4096, 14336}, {96, 6144, 4096},   {256, 8192, 28672},
                               {320, 6144, 4160},  {700, 28672, 512}, {1024, 8192, 2048}, {1500, 4096, 1040},
                               {8192, 4096, 1024}, {5000, 264, 4096}, {512, 4096, 14336}};
  for (const auto& [m, n, k] : shapes) {
    DenseMm p{};
    p.m = m, p.n = n, p.k = k, p.multiprocessors = kSms;
    const auto args = Config::arguments(p);
    const int64_t room = aoq::dense::workspace_bytes(Config::kTile, m, n, kSms);
    const int64_t needed = Config::Kernel::get_workspace_size(args);
    if (needed > room || (!Config::kTile.stream_k && needed)) fail("%s: %d bytes of workspace", name, int(needed));
    const auto blocks = walk<Config>(args);
    if (blocks.size() > kSms || blocks.size() % side) fail("%s: %d blocks", name, int(blocks.size()));
    const int steps = aoq::ceil_div(k, 128);
    const int tiles_i = aoq::ceil_div(get<0>(args.problem_shape), int(size<0>(typename Config::Tile{})));
    const int tiles_j = aoq::ceil_div(get<1>(args.problem_shape), int(size<1>(typename Config::Tile{})));
    std::vector<int> seen(tiles_i * tiles_j * steps);
    uint64_t most = 0;
    for (const auto& parts : blocks) {
      uint64_t made = 0;
      for (const Part& part : parts) {
        made += part.count;
        if (part.i < tiles_i && part.j < tiles_j)
          for (uint32_t step = part.k; step < part.k + part.count; ++step)
            ++seen[(part.i * tiles_j + part.j) * steps + step];
      }
      most = std::max(most, made);
    }
    for (const int times : seen)
      if (times != 1) fail("%s: %d x %d x %d: a step is made %d times", name, m, n, k, times);
    const int64_t tiles = aoq::dense::blocks_of(Config::kTile, m, n);
    if (int64_t(most) > aoq::ceil_div(tiles, kSms) * steps)
      fail("%s: %d x %d x %d: a block makes %d steps of %d tiles", name, m, n, k, int(most), int(tiles));
    // A split that is not a tile's first adds to the sums of those before it, and waits for them.
    std::map<std::pair<int, int>, uint32_t> done;
    std::vector<size_t> next(blocks.size());
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t block = 0; block < blocks.size(); ++block)
        for (; next[block] < blocks[block].size(); ++next[block], moved = true) {
          const Part& part = blocks[block][next[block]];
          if (done[{part.i, part.j}] != part.k) break;
          done[{part.i, part.j}] += part.count;
        }
    }
    for (size_t block = 0; block < blocks.size(); ++block)
      if (next[block] < blocks[block].size()) fail("%s: %d x %d x %d: blocks wait for each other", name, m, n, k);
  }
}

template <class Config>
void check_instance(const char* name) {
  const Operands ragged(150, 264, 4096, Dtype::bf16, false, false), odd(150, 260, 4096, Dtype::bf16, false, false);
  using Kernel = typename Config::Kernel;
  const auto args = Config::arguments(ragged.p);
  if (!Kernel::can_implement(args)) fail("%s: not what TMA takes", name);
  if (Kernel::can_implement(Config::arguments(odd.p))) fail("%s: rows of out that TMA does not take", name);
  if (sizeof(typename Kernel::SharedStorage) > 227 * 1024) fail("%s: too much shared memory", name);
  constexpr int stages = Config::Mainloop::DispatchPolicy::Stages;
  if (stages < 4) fail("%s: %d stages", name, stages);
  // A's pitch and B's, and that n is the contiguous side of out.
  const auto [a, b, d] = cute::make_tuple(args.mainloop.dA, args.mainloop.dB, args.epilogue.dD);
  if (cute::get<0>(a) != 4096 || cute::get<0>(b) != 4096) fail("%s: pitches", name);
  if (cute::get<Config::kSwapped ? 1 : 0>(d) != 264 || cute::get<Config::kSwapped ? 0 : 1>(d) != 1)
    fail("%s: out's strides", name);
  const bool swapped = reinterpret_cast<const uint8_t*>(args.mainloop.ptr_A) == ragged.p.w;
  if (ragged.p.w != ragged.p.x && swapped != Config::kSwapped) fail("%s: A is the wrong side", name);
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16})
    for (const int asymmetric : {0, 1})
      check_epilogue<Config>(Operands(70, 264, 64, dtype, asymmetric, !asymmetric || dtype == Dtype::f16));
  check_schedule<Config>(name);
  std::printf("%s: %d stages, %zu bytes of shared memory\n", name, stages, sizeof(typename Kernel::SharedStorage));
}

int main() {
  using cutlass::float_e4m3_t;
#define AOQ_INSTANCE(code, tokens, rows, pairs, stream_k)                                                  \
  check_instance<aoq::Dense90<code, tokens, rows, pairs, stream_k>>(#code " " #tokens "x" #rows " " #pairs \
                                                                          " " #stream_k)
#define AOQ_INSTANCES(code)                  \
  AOQ_INSTANCE(code, 128, 256, true, false); \
  AOQ_INSTANCE(code, 128, 256, true, true);  \
  AOQ_INSTANCE(code, 128, 192, true, false); \
  AOQ_INSTANCE(code, 64, 256, true, false);  \
  AOQ_INSTANCE(code, 64, 192, true, false);  \
  AOQ_INSTANCE(code, 64, 128, true, false);  \
  AOQ_INSTANCE(code, 32, 128, true, false);  \
  AOQ_INSTANCE(code, 32, 64, true, false);   \
  AOQ_INSTANCE(code, 16, 64, false, false)
  AOQ_INSTANCES(int8_t);
  AOQ_INSTANCES(float_e4m3_t);
  std::printf("%d values agree\n", checked);
}

#else

// A thread's values, in the order in which CUTLASS's epilogues read sums from shared memory: OutputTileThreadMap's own
// offsets, steps and strides.
template <class Config>
void check_epilogue(const Operands& o) {
  using Map = typename Config::ThreadMap;
  using Base = typename Map::Base;
  using Node = aoq::FinishAndStore<Map>;
  constexpr int kWidth = Map::kElementsPerAccess;
  typename Node::SharedStorage shared;
  const DenseMm& p = o.p;
  Node node(p, shared);
  const auto shape = cute::make_shape(int(p.m), int(p.n), 1);
  for (int tile_m = 0; tile_m * Config::kTokens < p.m; ++tile_m)
    for (int tile_n = 0; tile_n * Config::kRows < p.n; ++tile_n)
      for (int thread = 0; thread < Base::kThreads; ++thread) {
        auto callbacks = node.get_callbacks({tile_m, tile_n, 0}, thread, shape);
        callbacks.begin_epilogue();
        const auto first = Base::initial_offset(thread);
        int step_row = 0, state[3] = {};
        for (int step = 0; step < Base::Count::kTile; ++step) {
          int index = 0;
          for (int cluster = 0; cluster < Base::Iterations::kCluster; ++cluster)
            for (int group = 0; group < Base::Iterations::kGroup; ++group)
              for (int row = 0; row < Base::Iterations::kRow; ++row)
                for (int column = 0; column < Base::Iterations::kColumn; ++column, ++index) {
                  const int64_t m = int64_t{tile_m} * Config::kTokens + first.row() + step_row +
                                    row * Base::Delta::kRow + group * Base::Delta::kGroup +
                                    cluster * Base::Delta::kCluster;
                  const int64_t n = int64_t{tile_n} * Config::kRows + first.column() + column * Base::Delta::kColumn;
                  cutlass::Array<typename Config::Sum, kWidth> products;
                  for (int e = 0; e < kWidth; ++e) products[e] = Operands::product(m, n + e);
                  callbacks.visit(step, index / Base::Iterations::kColumn, column, index, products);
                }
          // PredicatedTileIterator::operator++
          step_row += Base::Shape::kRow;
          if (++state[0] == Base::Count::kRow) {
            state[0] = 0;
            step_row += (Base::Shape::kGroup - 1) * Base::Shape::kRow * Base::Count::kRow;
            if (++state[1] == Base::Count::kGroup) {
              state[1] = 0;
              step_row += Base::Count::kGroup * Base::Shape::kGroup * Base::Count::kRow * Base::Shape::kRow;
            }
          }
        }
      }
  for (int64_t m = 0; m < p.m; ++m)
    for (int64_t n = 0; n < p.n; ++n) {
      ++checked;
      const float wanted = round_to(o.wanted(m, n), p.out_dtype), got = load_float(p.out, p.out_dtype, m * p.n + n);
      if (!(got == wanted)) fail("out[%d, %d]: %g, wanted %g", int(m), int(n), got, wanted);
    }
}

template <class Config>
void check_instance(const char* name) {
  using Kernel = typename Config::Kernel;
  if (sizeof(typename Kernel::SharedStorage) > 99 * 1024) fail("%s: too much shared memory", name);
  for (const int n : {264, 37, 66})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
      for (const int asymmetric : {0, 1}) {
        Operands o(150, n, 64, dtype, asymmetric, !asymmetric || dtype == Dtype::f16);
        check_epilogue<Config>(o);
        if (Kernel::can_implement({o.p.m > 0 ? 150 : 0, n, 64}) != cutlass::Status::kSuccess && n % 4 == 0)
          fail("%s: cannot run n = %d", name, n);
      }
  std::printf("%s: %zu bytes of shared memory\n", name, sizeof(typename Kernel::SharedStorage));
}

int main() {
  using namespace cutlass;
#define AOQ_INSTANCE(x, w, tokens, rows) \
  check_instance<aoq::Dense80<x, w, tokens, rows>>(#x " " #w " " #tokens "x" #rows)
  AOQ_INSTANCE(int8_t, int8_t, 128, 128);
  AOQ_INSTANCE(int8_t, int8_t, 64, 128);
  AOQ_INSTANCE(int8_t, int8_t, 16, 64);
  AOQ_INSTANCE(float_e4m3_t, float_e4m3_t, 128, 128);
  AOQ_INSTANCE(float_e5m2_t, float_e4m3_t, 64, 128);
  AOQ_INSTANCE(float_e4m3_t, float_e4m3_t, 16, 64);
  std::printf("%d values agree\n", checked);
}
#endif
