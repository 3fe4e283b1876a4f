// AMX tiles: eight registers of 16 rows by 64 bytes. Sealed: included by *_amx.cpp only.
//
// AOQ_EMULATE_AMX replaces them by arrays in memory with the same meaning, so that machines without AMX prove the
// kernels' indices, and sanitizers see what tile loads and stores touch.
#pragma once
#include <immintrin.h>

#include "base/dtype.h"

namespace {

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "the layout ldtilecfg reads");

#if defined(AOQ_EMULATE_AMX)

struct Tile {
  alignas(64) uint8_t byte[16][64];
};
inline Tile (&tiles())[8] {
  static thread_local Tile tile[8];
  return tile;
}
inline TileConfig& tile_config() {
  static thread_local TileConfig config;
  return config;
}
inline void load_tile_config(const TileConfig& config) { tile_config() = config; }
inline void release_tiles() { tile_config() = TileConfig{}; }

template <int t>
inline void tile_zero() {
  std::memset(tiles()[t].byte, 0, sizeof(Tile));
}
template <int t>
inline void tile_load(const void* data, int64_t stride) {
  std::memset(tiles()[t].byte, 0, sizeof(Tile));  // rows beyond the configured ones read as 0
  for (int row = 0; row < tile_config().rows[t]; ++row)
    std::memcpy(tiles()[t].byte[row], static_cast<const char*>(data) + row * stride, tile_config().column_bytes[t]);
}
template <int t>
inline void tile_stream(const void* data, int64_t stride) {
  tile_load<t>(data, stride);
}
template <int t>
inline void tile_store(void* data, int64_t stride) {
  for (int row = 0; row < tile_config().rows[t]; ++row)
    std::memcpy(static_cast<char*>(data) + row * stride, tiles()[t].byte[row], tile_config().column_bytes[t]);
}
// sum[m][n] += a[m][2p] * b[p][2n] + a[m][2p + 1] * b[p][2n + 1]
template <int sum, int a, int b>
inline void tile_dot_bf16() {
  for (int m = 0; m < tile_config().rows[a]; ++m)
    for (int n = 0; n < 16; ++n) {
      float total;
      std::memcpy(&total, tiles()[sum].byte[m] + 4 * n, 4);
      for (int p = 0; p < 16; ++p)
        for (int half = 0; half < 2; ++half) {
          uint16_t x, w;
          std::memcpy(&x, tiles()[a].byte[m] + 4 * p + 2 * half, 2);
          std::memcpy(&w, tiles()[b].byte[p] + 4 * n + 2 * half, 2);
          total += bf16_to_float(x) * bf16_to_float(w);
        }
      std::memcpy(tiles()[sum].byte[m] + 4 * n, &total, 4);
    }
}
// sum[m][n] += a[m][4q + i] * b[q][4n + i] over i < 4; a is signed, b unsigned
template <int sum, int a, int b>
inline void tile_dot_int8() {
  for (int m = 0; m < tile_config().rows[a]; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t total;
      std::memcpy(&total, tiles()[sum].byte[m] + 4 * n, 4);
      for (int q = 0; q < 16; ++q)
        for (int i = 0; i < 4; ++i)
          total += static_cast<int8_t>(tiles()[a].byte[m][4 * q + i]) * tiles()[b].byte[q][4 * n + i];
      std::memcpy(tiles()[sum].byte[m] + 4 * n, &total, 4);
    }
}

#else

inline void load_tile_config(const TileConfig& config) { _tile_loadconfig(&config); }
inline void release_tiles() { _tile_release(); }
// GCC's intrinsics paste their argument into the register's name, so a template cannot pass it on: the same
// instructions by hand. The clobbers keep GCC 12 from moving vector stores across tile accesses of the same memory.
template <int t>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(t));
}
template <int t>
inline void tile_load(const void* data, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(stride), "i"(t) : "memory");
}
template <int t>
inline void tile_stream(const void* data, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(stride), "i"(t) : "memory");
}
template <int t>
inline void tile_store(void* data, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "r"(stride), "i"(t) : "memory");
}
template <int sum, int a, int b>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}
template <int sum, int a, int b>
inline void tile_dot_int8() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

#endif

// Tiles for the life of a scope: all full, but for the rows of tiles 0..5 (sums and x) when x has fewer than 16.
// Nothing is cached between scopes, since other libraries in the process configure the same tiles.
class Tiles {
 public:
  explicit Tiles(int64_t rows) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
      config.column_bytes[t] = 64;
      config.rows[t] = static_cast<uint8_t>(t < 6 && rows < 16 ? rows : 16);
    }
    load_tile_config(config);
  }
  ~Tiles() { release_tiles(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
