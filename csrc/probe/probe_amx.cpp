// Four sum tiles, as the kernels have them: two chains would wait for each other.
#include "probe/probe.h"
#include "simd/amx.h"

namespace {

template <class Lane, class One, class Dot>
double run_tiles(int64_t iterations, One one, Dot dot) {
  const Tiles tiles(16);
  alignas(64) One ones[1024 / sizeof(One)];
  for (One& value : ones) value = one;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_load<4>(ones, 64);
  tile_load<5>(ones, 64);
  tile_load<6>(ones, 64);
  tile_load<7>(ones, 64);
  for (; iterations > 0; --iterations) dot();
  alignas(64) Lane sums[4][256];
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  tile_store<2>(sums[2], 64);
  tile_store<3>(sums[3], 64);
  double total = 0;
  for (const auto& tile : sums)
    for (const Lane lane : tile) total += static_cast<double>(lane);
  return total;
}

}  // namespace

double aoq::peak_int8_amx(int64_t iterations) {
  return run_tiles<int32_t>(iterations, uint8_t{1}, [] {
    tile_dot_int8<0, 4, 6>();
    tile_dot_int8<1, 4, 7>();
    tile_dot_int8<2, 5, 6>();
    tile_dot_int8<3, 5, 7>();
  });
}

double aoq::peak_bf16_amx(int64_t iterations) {
  return run_tiles<float>(iterations, float_to_bf16(1), [] {
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  });
}
