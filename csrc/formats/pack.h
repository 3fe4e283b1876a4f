// Plain codes of any format to units and back (formats/format.h), code by code.
#pragma once
#include <cstring>

#include "base/parallel.h"
#include "formats/format.h"

namespace aoq {
namespace {

// Blocks of sixteen rows over threads; body(block) handles one.
template <int kBits, class Body>
void for_blocks(int64_t n, int64_t k, Body body) {
  auto blocks = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) body(block);
  };
  parallel(ceil_div(n, kUnitN), 1 + 32768 / (k * kUnitN), blocks);
}

// qdata [n][plain_bytes(k)] -> packed [ceil(n/16)][ceil(k/kUnitK)][kUnitBytes]; what lies beyond n and k is 0.
template <int kBits>
void pack_units(const uint8_t* qdata, int64_t n, int64_t k, uint8_t* packed) {
  using P = Planes<kBits>;
  const int64_t units = ceil_div(k, P::kUnitK), row_bytes = plain_bytes<kBits>(k);
  for_blocks<kBits>(n, k, [&](int64_t block) {
    uint8_t* const out = packed + block * units * P::kUnitBytes;
    std::memset(out, 0, static_cast<size_t>(units * P::kUnitBytes));
    for (int row = 0; row < kUnitN && block * kUnitN + row < n; ++row) {
      const uint8_t* const from = qdata + (block * kUnitN + row) * row_bytes;
      for (int64_t at = 0; at < k; ++at)
        add_code<kBits>(out + at / P::kUnitK * P::kUnitBytes, row, static_cast<int>(at % P::kUnitK),
                        plain_code<kBits>(from, at));
    }
  });
}

// The inverse.
template <int kBits>
void unpack_units(const uint8_t* packed, int64_t n, int64_t k, uint8_t* qdata) {
  using P = Planes<kBits>;
  const int64_t units = ceil_div(k, P::kUnitK), row_bytes = plain_bytes<kBits>(k);
  for_blocks<kBits>(n, k, [&](int64_t block) {
    const uint8_t* const from = packed + block * units * P::kUnitBytes;
    for (int row = 0; row < kUnitN && block * kUnitN + row < n; ++row) {
      uint8_t* const out = qdata + (block * kUnitN + row) * row_bytes;
      std::memset(out, 0, static_cast<size_t>(row_bytes));
      for (int64_t at = 0; at < k; ++at)
        add_plain_code<kBits>(
            out, at, code_at<kBits>(from + at / P::kUnitK * P::kUnitBytes, row, static_cast<int>(at % P::kUnitK)));
    }
  });
}

// Calls run(std::integral_constant-like with ::value) for a width of 1 to 7 bits.
template <int kBits>
struct Width {
  static constexpr int value = kBits;
};
template <class Run>
void with_bits(int64_t bits, Run run) {
  switch (bits) {
    case 1: return run(Width<1>{});
    case 2: return run(Width<2>{});
    case 3: return run(Width<3>{});
    case 4: return run(Width<4>{});
    case 5: return run(Width<5>{});
    case 6: return run(Width<6>{});
    default: return run(Width<7>{});
  }
}

}  // namespace
}  // namespace aoq
