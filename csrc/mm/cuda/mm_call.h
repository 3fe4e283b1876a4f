// A call of a matmul on CUDA, as the entries of all its kernels see it: which operands, on which device; what a grouped
// one has besides.
#pragma once
#include "autotune/autotune_cuda.h"
#include "mm/cuda/experts.h"
#include "mm/cuda/mm_cuda.h"
#include "mm/packed_mm_entry.h"

namespace aoq {

struct MmCall {
  const char* op;  // as errors have it
  const PackedOperands& t;
  int64_t n, config;
  const Experts* experts;  // or null
  const OnDevice& device;

  // Memory of the framework's for the device; none of no bytes.
  Tensor memory(int64_t bytes) const { return new_tensor(t.x, {bytes}, ScalarType::Char); }
};

// The tiles of rows that kernels take of a grouped matmul, listed on the device: lives as long as the kernels are
// launched.
class ExpertList {
 public:
  // tokens: rows of a tile. planes: of x, which are rows of their own where x is fp32.
  ExpertList(const MmCall& call, PackedMm& p, int tokens, int planes) {
    const Tensor& offsets = call.experts->offsets;
    const int64_t experts = call.experts->count, most = most_tiles(p.m, experts, tokens);
    constexpr int64_t kTile = sizeof(ExpertTile);
    memory_ = call.memory(planes * most * kTile + experts * 4);
    auto* const tiles = static_cast<ExpertTile*>(memory_.mutable_data_ptr());
    auto* const ends = reinterpret_cast<int32_t*>(tiles + planes * most);
    expert_tiles_sm80({offsets.const_data_ptr(), dtype_of(offsets) == ScalarType::Long, experts, p.m, tokens, planes,
                       most, tiles, ends},
                      call.device.stream);
    call.device.check_launch();
    p.expert_tiles = tiles;
    p.expert_tile_count = most;
    p.expert_ends = ends;
    p.experts = experts;
  }

 private:
  Tensor memory_;
};

// config: a plan without a split along k, whose blocks would add up tiles that they cannot count.
template <class Takes>
void check_expert_config(const MmCall& call, const PackedMm& p, int configs, Takes takes) {
  check_value(call.config >= -1 && call.config < configs && (call.config < 0 || takes(static_cast<int>(call.config))),
              call.op, "config", "expected -1 or below ", configs,
              " a plan without a split along k, as x has experts, got ", call.config);
  const int64_t tiles = ceil_div(p.n, kUnitN) * call.experts->count;
  check_value(tiles < int64_t{1} << 31, call.op, "parts",
              "expected fewer than 2^31 tiles of 16 rows in all experts, got ", tiles);
}

}  // namespace aoq
