// The choice of a kernel for int8_mm and fp8_mm, from the ops' own tables.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/dense_mm_plan.h"

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
#include "int8_mm/kernels_cuda.inc"
};
constexpr Named kFp8[] = {
#include "fp8_mm/kernels_cuda.inc"
};

constexpr Tile kTile = aoq::dense::tile_of(Sm::sm89, "fp8_mm_cutlass_64x128_e4m3_e5m2_sm89");
static_assert(kTile.tokens == 64 && kTile.rows == 128 && !kTile.x_e5m2 && kTile.w_e5m2);
static_assert(!aoq::dense::tile_of(Sm::sm90a, "int8_mm_cutlass_16x64_sm90a").w_e5m2);

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
