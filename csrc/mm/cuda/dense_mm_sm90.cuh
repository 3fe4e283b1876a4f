// mm/cuda/dense_mm.h on Hopper: CUTLASS's warp-specialized kernels, TMA in and out, wgmma, and an epilogue of our own.
//
// One set of rows is a kernel's A, the other its B; out is its D. Weights are A and out is transposed (kSwapped) where
// there are fewer tokens than wgmma's 64 rows: then they are the n of its instruction, 16 or more.
#pragma once
#include <stdexcept>
#include <string>

#include <cute/tensor.hpp>

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "cuda/pdl.h"
#include "mm/cuda/dense_mm.h"
#include "mm/cuda/dense_mm_plan.h"
#if defined(__CUDACC__)  // what launches; tests look at the rest on the host
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#endif

namespace aoq {
namespace {

namespace fusion = cutlass::epilogue::fusion;

// ---- the epilogue: a node of CUTLASS's visitor tree that is all of it. The terms of a tile's rows and columns go to
// shared memory as floats, whatever their dtype; what it gives is the sixteen bits of out's dtype.

template <bool kSwapped, int kTokens, int kRows>
struct Finish {
  using Bits = cutlass::bfloat16_t;  // or fp16's, which CUTLASS only moves

  struct SharedStorage {
    alignas(16) ColumnTerms columns[kRows];
    alignas(16) RowTerms rows[kTokens];
  };
  using Arguments = DenseMm;
  using Params = DenseMm;

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& args, void*) {
    return args;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  CUTLASS_HOST_DEVICE Finish() {}
  CUTLASS_HOST_DEVICE Finish(const Params& params, const SharedStorage& shared)
      : params_(&params), shared_(const_cast<SharedStorage*>(&shared)) {}

  CUTLASS_DEVICE bool is_producer_load_needed() const { return false; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return false; }

  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(const fusion::detail::ProducerLoadArgs<Args...>&) {
    return fusion::detail::EmptyProducerLoadCallbacks{};
  }

  // Coordinates: (i, j) of D's tile, of each value that this thread gives, relative to its first, at `origin`.
  template <class Coordinates>
  struct Callbacks : fusion::detail::EmptyConsumerStoreCallbacks {
    CUTLASS_DEVICE Callbacks(const DenseMm& p, SharedStorage& shared, Coordinates coordinates, int origin_i,
                             int origin_j, int64_t first_token, int64_t first_row, int thread, int threads)
        : p(p),
          shared(shared),
          coordinates(coordinates),
          origin_i(origin_i),
          origin_j(origin_j),
          first_token(first_token),
          first_row(first_row),
          thread(thread),
          threads(threads) {}

    const DenseMm& p;
    SharedStorage& shared;
    Coordinates coordinates;  // (CPY, CPY_M, CPY_N, EPI_M, EPI_N)
    int origin_i, origin_j;
    int64_t first_token, first_row;
    int thread, threads;

    CUTLASS_DEVICE void begin() {
      for (int i = thread; i < kRows; i += threads) shared.columns[i] = column_terms(p, first_row + i);
      for (int i = thread; i < kTokens; i += threads) shared.rows[i] = row_terms(p, first_token + i);
    }
    CUTLASS_DEVICE bool begin_sync_needed() const { return true; }

    template <class Product, int kCount>
    CUTLASS_DEVICE cutlass::Array<Bits, kCount> visit(const cutlass::Array<Product, kCount>& products, int epi_v,
                                                      int epi_m, int epi_n) {
      const auto at = coordinates(cute::_, cute::_, cute::_, epi_m, epi_n);
      cutlass::Array<float, kCount> values;
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < kCount; ++e) {
        const auto ij = at(epi_v * kCount + e);
        const int i = origin_i + static_cast<int>(cute::get<0>(ij)), j = origin_j + static_cast<int>(cute::get<1>(ij));
        values[e] =
            finish(static_cast<float>(products[e]), shared.rows[kSwapped ? j : i], shared.columns[kSwapped ? i : j]);
      }
      cutlass::Array<Bits, kCount> bits;
      if (p.out_dtype == Dtype::bf16) {
        bits = cutlass::NumericArrayConverter<cutlass::bfloat16_t, float, kCount>{}(values);
      } else {
        const auto halves = cutlass::NumericArrayConverter<cutlass::half_t, float, kCount>{}(values);
        CUTLASS_PRAGMA_UNROLL
        for (int e = 0; e < kCount; ++e) bits[e] = Bits::bitcast(cutlass::half_t(halves[e]).raw());
      }
      return bits;
    }
  };

  template <bool, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::detail::ConsumerStoreArgs<Args...>& args) {
    using namespace cute;
    const auto [m, n, k, l] = args.tile_coord_mnkl;
    const int64_t i = int64_t{m} * size<0>(args.tile_shape_mnk), j = int64_t{n} * size<1>(args.tile_shape_mnk);
    // What is left of D from the tile's first value on, less what is from the thread's.
    const auto origin = args.residue_cD - args.residue_tCcD;
    return Callbacks<decltype(args.tCcD)>(*params_, *shared_, args.tCcD, get<0>(origin), get<1>(origin),
                                          kSwapped ? j : i, kSwapped ? i : j, args.thread_idx, size(args.tiled_copy));
  }

 private:
  const Params* params_ = nullptr;
  SharedStorage* shared_ = nullptr;
};

// ---- the kernel

namespace schedule {
using namespace cutlass::gemm;
// fp8 sums stay in the tensor core, which keeps some 14 bits of them, as inference elsewhere has it; a sum in fp32 of
// its own for each 128 columns would not leave registers for these tiles.
template <bool kInt8, bool kCooperative>
using Mainloop = cute::conditional_t<
    kInt8, cute::conditional_t<kCooperative, KernelTmaWarpSpecializedCooperative, KernelTmaWarpSpecializedPingpong>,
    cute::conditional_t<kCooperative, KernelTmaWarpSpecializedCooperativeFP8FastAccum,
                        KernelTmaWarpSpecializedPingpongFP8FastAccum>>;
template <bool kCooperative>
using Epilogue = cute::conditional_t<kCooperative, cutlass::epilogue::TmaWarpSpecializedCooperative,
                                     cutlass::epilogue::TmaWarpSpecialized>;
}  // namespace schedule

template <class Code_, int kTokens_, int kRows_, bool kPairs, bool kStreamK = false>
struct Dense90 {
  using Code = Code_;
  static constexpr int kTokens = kTokens_, kRows = kRows_, kDepth = 128;
  static constexpr bool kSwapped = kTokens < 64;
  // Two groups of warps share a tile that one has not the registers for; else each has its own, and multiplies while
  // the other ends.
  static constexpr bool kCooperative = kTokens * kRows > 128 * 128;
  static constexpr bool kInt8 = cute::is_same_v<Code, int8_t>;
  using Tile =
      cute::Shape<cute::Int<kSwapped ? kRows : kTokens>, cute::Int<kSwapped ? kTokens : kRows>, cute::Int<kDepth>>;
  static constexpr dense::Tile kTile{Sm::sm90a, kTokens, kRows, kPairs, kStreamK, false, false};
  using Cluster =
      cute::Shape<cute::Int<(kPairs && !kSwapped ? 2 : 1)>, cute::Int<(kPairs && kSwapped ? 2 : 1)>, cute::_1>;
  using Sum = cute::conditional_t<kInt8, int32_t, float>;
  using OutLayout = cute::conditional_t<kSwapped, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;

  using Fusion = Finish<kSwapped, kTokens, kRows>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, Sum, float, void, OutLayout, 8, typename Fusion::Bits, OutLayout,
      8, schedule::Epilogue<kCooperative>, Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Code, cutlass::layout::RowMajor, 16, Code,
      cutlass::layout::ColumnMajor, 16, Sum, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      schedule::Mainloop<kInt8, kCooperative>>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<
      cute::Shape<int, int, int, int>, Mainloop, Epilogue,
      cute::conditional_t<kStreamK, cutlass::gemm::StreamKScheduler, cutlass::gemm::PersistentScheduler>>;
  using Arguments = typename Kernel::Arguments;

  static Arguments arguments(const DenseMm& p) {
    const auto* x = reinterpret_cast<const Code*>(p.x);
    const auto* w = reinterpret_cast<const Code*>(p.w);
    const int tokens = static_cast<int>(p.m), rows = static_cast<int>(p.n), k = static_cast<int>(p.k);
    typename Kernel::StrideA pitch{p.k, {}, 0};  // B's is the same
    typename Kernel::StrideD out_pitch{};
    cute::get<kSwapped ? 1 : 0>(out_pitch) = p.n;
    auto* const out = static_cast<typename Fusion::Bits*>(p.out);
    Arguments args{cutlass::gemm::GemmUniversalMode::kGemm,
                   {kSwapped ? rows : tokens, kSwapped ? tokens : rows, k, 1},
                   {kSwapped ? w : x, pitch, kSwapped ? x : w, pitch},
                   {p, nullptr, out_pitch, out, out_pitch}};
    args.hw_info.sm_count = p.multiprocessors;
    args.scheduler.max_swizzle_size = dense::band_of(kTile, p.m, p.n, p.multiprocessors);
    if constexpr (kStreamK) {
      using Params = typename Kernel::TileScheduler::Params;
      args.scheduler.decomposition_mode = Params::DecompositionMode::StreamK;
      args.scheduler.reduction_mode = Params::ReductionMode::Deterministic;
    }
    return args;
  }
};

#if defined(__CUDACC__)
// Instance: of a kernel below.
template <class Instance>
void run_dense(const DenseMm& p, CudaStream stream) {
  constexpr dense::Tile kTile = Instance::kTile;
  static_assert(!kTile.x_e5m2 && !kTile.w_e5m2, "these have kernels for other architectures alone");
  using Code = cute::conditional_t<Instance::kInt8, int8_t, cutlass::float_e4m3_t>;
  using Config = Dense90<Code, kTile.tokens, kTile.rows, kTile.pairs, kTile.stream_k>;
  cutlass::gemm::device::GemmUniversalAdapter<typename Config::Kernel> gemm;
  auto status = gemm.initialize(Config::arguments(p), p.workspace, stream);
  // Programmatic launch: the kernel waits by itself for the one that quantizes x. With stream-K what is before it
  // clears its barriers, and is no kernel.
  if (status == cutlass::Status::kSuccess) status = gemm.run(stream, nullptr, !kTile.stream_k && pdl());
  if (status != cutlass::Status::kSuccess)
    throw std::runtime_error(std::string("aoq: CUTLASS: ") + cutlass::cutlassGetStatusString(status));
}
#endif

}  // namespace
}  // namespace aoq

// A line of kernels_cuda.inc is a kernel, whose name says all: cmake/instances.cmake makes files of them.
#define AOQ_CUTLASS_KERNEL(sm, function)                                    \
  namespace {                                                               \
  struct function##_instance {                                              \
    static constexpr bool kInt8 = dense::is_int8(#function);                \
    static constexpr dense::Tile kTile = dense::tile_of(Sm::sm, #function); \
  };                                                                        \
  }                                                                         \
  void function(const DenseMm& p, CudaStream stream) { run_dense<function##_instance>(p, stream); }
