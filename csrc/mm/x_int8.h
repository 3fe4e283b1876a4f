// Rows of x that were quantized to int8, in the order in which engines meet the codes of a unit.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

// A group's sum of x to the integer that its sums start at, in the same place.
inline void start_of_integers(float* sum, float times) {
  const int32_t start = static_cast<int32_t>(*sum) * static_cast<int32_t>(times);
  std::memcpy(sum, &start, sizeof(start));
}

// As pairs of int16, for multiplying what two bytes of a lane are widened to.
template <class Format>
inline const uint32_t* int8_pairs_of_x(const int8_t* codes, int64_t steps, uint32_t* memory) {
  auto pair = [](int8_t low, int8_t high) {
    return static_cast<uint16_t>(low) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
  };
  if constexpr (Format::kBits == 8)  // the even bytes of a lane, then the odd ones
    for (int64_t step = 0; step < steps; step += 2, codes += 4) {
      memory[step] = pair(codes[0], codes[2]);
      memory[step + 1] = pair(codes[1], codes[3]);
    }
  else
    for (int64_t step = 0; step < steps; ++step) memory[step] = pair(codes[2 * step], codes[2 * step + 1]);
  return memory;
}

}  // namespace
