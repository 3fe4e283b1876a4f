// NormalFloat of 4 bits, in groups: the quantiles of a normal distribution scaled to [-1, 1], with 0 among them
// (Dettmers et al., QLoRA, appendix E). Its values are rounded where x is bf16.
#pragma once
#include "formats/format.h"

namespace aoq {
namespace {

struct Nf4 {
  static constexpr int kBits = 4, kFlip = 0, kMid = 0;
  static constexpr bool kGrouped = true, kFp8 = false, kTable = true;
  static constexpr float value(int code) {
    constexpr float kQuantiles[16] = {-1.0f,
                                      -0.6961928009986877f,
                                      -0.5250730514526367f,
                                      -0.39491748809814453f,
                                      -0.28444138169288635f,
                                      -0.18477343022823334f,
                                      -0.09105003625154495f,
                                      0.0f,
                                      0.07958029955625534f,
                                      0.16093020141124725f,
                                      0.24611230194568634f,
                                      0.33791524171829224f,
                                      0.44070982933044434f,
                                      0.5626170039176941f,
                                      0.7229568362236023f,
                                      1.0f};
    return kQuantiles[code];
  }
};

}  // namespace
}  // namespace aoq
