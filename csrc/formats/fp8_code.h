// fp8 codes: e4m3fn (largest value 448, no infinities) and e5m2 (57344).
//
//   e4m3   s eeee mmm   2^(e - 7) * (1 + m / 8)    e = 0: m * 2^-9
//   e5m2   s eeeee mm   2^(e - 15) * (1 + m / 4)   e = 0: m * 2^-16
#pragma once

namespace {

struct E4m3 {
  static constexpr int kMantissa = 3, kBias = 7;
  static constexpr float kMax = 448, kLeastNormal = 0x1p-6f;
};
struct E5m2 {
  static constexpr int kMantissa = 2, kBias = 15;
  static constexpr float kMax = 57344, kLeastNormal = 0x1p-14f;
};

}  // namespace
