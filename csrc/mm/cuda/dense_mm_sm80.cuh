// mm/cuda/dense_mm.h by mma.sync: CUTLASS's pipelined kernels with cp.async, int8 from compute capability 8.0 on and
// fp8 from 8.9 on, and an epilogue of our own. For every shape, alignment and dtype of out, hence also what Hopper does
// with what TMA or the dense fp8 kernels there do not take.
#pragma once
#include <stdexcept>
#include <string>

#include <cute/tensor.hpp>

#include <cutlass/cutlass.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cutlass/gemm/threadblock/threadblock_swizzle.h>

// This leaves what it takes from the above to be included before it.
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "mm/cuda/dense_mm.h"
#include "mm/cuda/dense_mm_plan.h"
#if defined(__CUDACC__)  // what launches; tests look at the rest on the host
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#endif

namespace aoq {
namespace {

// ---- the epilogue: a node of CUTLASS's visitor tree that is all of it, storing included. A thread's columns are the
// same in each of its rows: their terms stay in registers.

template <class ThreadMap>
struct FinishAndStore {
  static constexpr int kWidth = ThreadMap::kElementsPerAccess;
  struct SharedStorage {};
  using Arguments = DenseMm;
  using Params = DenseMm;

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& args, void*) {
    return args;
  }

  CUTLASS_HOST_DEVICE FinishAndStore() {}
  CUTLASS_HOST_DEVICE FinishAndStore(const Params& params, const SharedStorage&) : params_(&params) {}

  // Coordinates: (row, column, batch) of each value that this thread gives, (VECTOR, COLUMN, ROW, STEP).
  template <class Coordinates>
  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    static constexpr int kColumns = decltype(cute::size<1>(Coordinates{}))::value;

    CUTLASS_DEVICE Callbacks(const DenseMm& p, Coordinates coordinates) : p(p), coordinates(coordinates) {}

    const DenseMm& p;
    Coordinates coordinates;
    ColumnTerms columns[kColumns][kWidth];

    CUTLASS_DEVICE void begin_epilogue() {
      CUTLASS_PRAGMA_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        CUTLASS_PRAGMA_UNROLL
        for (int e = 0; e < kWidth; ++e) columns[c][e] = column_terms(p, cute::get<1>(coordinates(e, c, 0, 0)));
      }
    }

    template <class Product, int kCount>
    CUTLASS_DEVICE cutlass::Array<float, kCount> visit(int step, int row, int column, int,
                                                       const cutlass::Array<Product, kCount>& products) {
      static_assert(kCount == kWidth);
      const auto first = coordinates(0, column, row, step);
      const int64_t m = cute::get<0>(first), n = cute::get<1>(first);
      cutlass::Array<float, kCount> values;
      if (m >= p.m) return {};
      const RowTerms terms = row_terms(p, m);
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < kCount; ++e) values[e] = finish(static_cast<float>(products[e]), terms, columns[column][e]);
      store(values, m * p.n + n, p.n - n);
      return values;
    }

    // `left` of the row are from the first value on.
    template <int kCount>
    CUTLASS_DEVICE void store(const cutlass::Array<float, kCount>& values, int64_t at, int64_t left) {
      if (p.n % kCount == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0) {
        if (left <= 0) return;
        if (p.out_dtype == Dtype::f32)
          *reinterpret_cast<cutlass::AlignedArray<float, kCount>*>(static_cast<float*>(p.out) + at) =
              reinterpret_cast<const cutlass::AlignedArray<float, kCount>&>(values);
        else if (p.out_dtype == Dtype::bf16)
          store_halves<cutlass::bfloat16_t>(values, at);
        else
          store_halves<cutlass::half_t>(values, at);
        return;
      }
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < kCount; ++e)
        if (e < left) store_float(p.out, p.out_dtype, at + e, values[e]);
    }
    template <class Half, int kCount>
    CUTLASS_DEVICE void store_halves(const cutlass::Array<float, kCount>& values, int64_t at) {
      const cutlass::Array<Half, kCount> halves = cutlass::NumericArrayConverter<Half, float, kCount>{}(values);
      *reinterpret_cast<cutlass::AlignedArray<Half, kCount>*>(static_cast<Half*>(p.out) + at) =
          reinterpret_cast<const cutlass::AlignedArray<Half, kCount>&>(halves);
    }
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape shape) {
    const auto coordinates =
        cute::group_modes<3, 6>(ThreadMap::partition(cute::make_identity_tensor(shape), thread, tile));
    return Callbacks<cute::remove_cvref_t<decltype(coordinates)>>(*params_, coordinates);
  }

 private:
  const Params* params_ = nullptr;
};

// ---- the kernel

template <bool kInt8, bool kE5m2>
using Code = cutlass::platform::conditional_t<
    kInt8, int8_t, cutlass::platform::conditional_t<kE5m2, cutlass::float_e5m2_t, cutlass::float_e4m3_t>>;

template <class XCode, class WCode, int kTokens_, int kRows_>
struct Dense80 {
  static constexpr int kTokens = kTokens_, kRows = kRows_;
  static constexpr bool kInt8 = cutlass::platform::is_same<XCode, int8_t>::value;
  // Few tokens: warps share a tile along k, and more of the weights is on its way. At most 98 KB of shared memory,
  // which devices from 8.0 on have.
  static constexpr int kDepth = kTokens < 64 ? 128 : 64, kStages = kTokens < 64 ? 5 : 4;
  using Tile = cutlass::gemm::GemmShape<kTokens, kRows, kDepth>;
  // fp8's sums of 64 x 64 do not fit the registers beside codes widened to fp16, as Hopper's mma.sync has them.
  using Warp = cutlass::gemm::GemmShape<(kTokens < 64 ? 16 : kInt8 ? kTokens / 2 : 32), 64, 64>;
  using Arch = cutlass::platform::conditional_t<kInt8, cutlass::arch::Sm80, cutlass::arch::Sm89>;
  using Sum = cutlass::platform::conditional_t<kInt8, int32_t, float>;
  using Operator = cutlass::platform::conditional_t<kInt8, cutlass::arch::OpMultiplyAddSaturate,
                                                    cutlass::arch::OpMultiplyAddFastAccum>;
  using ThreadMap = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, Warp, float, 4>;
  using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      XCode, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, 16, WCode, cutlass::layout::ColumnMajor,
      cutlass::ComplexTransform::kNone, 16, float, cutlass::layout::RowMajor, 4, Sum, float,
      cutlass::arch::OpClassTensorOp, Arch, Tile, Warp, cutlass::gemm::GemmShape<16, 8, 32>, FinishAndStore<ThreadMap>,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, kStages, Operator>::GemmKernel;
  using Arguments = typename Kernel::Arguments;
  static_assert(kStages * (kTokens + kRows) * kDepth <= 98 * 1024, "shared memory of a block on 8.6 and 8.9");

  static Arguments arguments(const DenseMm& p) {
    const cutlass::gemm::GemmCoord shape(static_cast<int>(p.m), static_cast<int>(p.n), static_cast<int>(p.k));
    // One batch, no C, nothing about D: the epilogue has all it needs in p.
    return {cutlass::gemm::GemmUniversalMode::kGemm,
            shape,
            1,
            p,
            p.x,
            p.w,
            nullptr,
            nullptr,
            0,
            0,
            0,
            0,
            p.k,
            p.k,
            p.n,
            p.n};
  }
};

#if defined(__CUDACC__)
// Instance: of a kernel below.
template <class Instance>
void run_dense(const DenseMm& p, CudaStream stream) {
  constexpr dense::Tile kTile = Instance::kTile;
  using Config =
      Dense80<Code<Instance::kInt8, kTile.x_e5m2>, Code<Instance::kInt8, kTile.w_e5m2>, kTile.tokens, kTile.rows>;
  cutlass::gemm::device::GemmUniversalAdapter<typename Config::Kernel> gemm;
  auto status = gemm.initialize(Config::arguments(p), nullptr, stream);
  if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
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
