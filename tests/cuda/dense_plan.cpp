// The choice of a kernel for int8_mm and fp8_mm, from the ops' own tables.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "mm/cuda/dense_mm_plan.h"

using aoq::Sm;
using aoq::dense::Device;
using aoq::dense::Problem;
using aoq::dense::Tile;

struct Named {
  Tile tile;
  const char* name;
};
#define AOQ_CUTLASS_KERNEL(sm, function) {aoq::dense::tile_of(Sm::sm, #function), #function},
constexpr Named kInt8[] = {
#include "ops/int8_mm/kernels_cuda.inc"
};
constexpr Named kFp8[] = {
#include "ops/fp8_mm/kernels_cuda.inc"
};

constexpr Tile kTile = aoq::dense::tile_of(Sm::sm89, "fp8_mm_cutlass_64x128_e4m3_e5m2_sm89");
static_assert(kTile.tokens == 64 && kTile.rows == 128 && !kTile.x_e5m2 && kTile.w_e5m2);
constexpr Tile kPair = aoq::dense::tile_of(Sm::sm90a, "int8_mm_cutlass_64x128_pairs_sm90a");
static_assert(kPair.tokens == 64 && kPair.rows == 128 && kPair.pairs && !kPair.stream_k && !kPair.x_e5m2);
constexpr Tile kStream = aoq::dense::tile_of(Sm::sm90a, "fp8_mm_cutlass_128x256_pairs_stream_k_sm90a");
static_assert(kStream.tokens == 128 && kStream.rows == 256 && kStream.pairs && kStream.stream_k && !kStream.w_e5m2);
static_assert(!kTile.pairs && !aoq::dense::tile_of(Sm::sm90a, "int8_mm_cutlass_16x64_sm90a").w_e5m2);

// Eight tiles of tokens by 32 of rows: whole bands of pairs would double them.
using aoq::dense::band_of, aoq::dense::blocks_of;
constexpr Tile kLarge = aoq::dense::tile_of(Sm::sm90a, "int8_mm_cutlass_128x256_pairs_sm90a");
static_assert(blocks_of(kLarge, 1024, 8192) == 256 && blocks_of(kLarge, 1024, 8192, 8) == 512);
static_assert(band_of(kLarge, 1024, 8192, 132) == 4 && band_of(kLarge, 8192, 8192, 132) == 8);
static_assert(blocks_of(kLarge, 1, 256) == 2 && band_of(kLarge, 256, 8192, 132) == 1);
// 32 tiles by 31 are eight turns, and so are 32 by 32: one more column of tiles costs nothing, unless all are shared
// out.
static_assert(band_of(kLarge, 4096, 31 * 256, 132) == 8 && band_of(kStream, 4096, 31 * 256, 132) == 1);

// m n k capability multiprocessors bytes_per_ns f32_out x_e5m2 w_e5m2 op -> the kernel's name, for each line.
int main() {
  Problem p{};
  Device device{};
  int f32, x_e5m2, w_e5m2;
  char op[16];
  long long m, n, k;
  while (std::scanf("%lld %lld %lld %d %d %lf %d %d %d %15s", &m, &n, &k, &device.capability, &device.multiprocessors,
                    &device.bytes_per_ns, &f32, &x_e5m2, &w_e5m2, op) == 10) {
    p = {m, n, k, f32 != 0, x_e5m2 != 0, w_e5m2 != 0};
    std::vector<Tile> tiles;
    std::vector<const char*> names;
    auto take = [&](const auto& table) {
      for (const Named& each : table) tiles.push_back(each.tile), names.push_back(each.name);
    };
    op[0] == 'i' ? take(kInt8) : take(kFp8);
    auto runs = [&](int i) { return aoq::allowed(tiles[i].sm, device.capability); };
    const int best = aoq::dense::choose(tiles, static_cast<int>(tiles.size()), p, device, runs);
    std::printf("%s\n", best < 0 ? "none" : names[best]);
  }
}
