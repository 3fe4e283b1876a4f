// A unit is a quad of k for each row, ready to multiply by vpdpbusd of any width.
#pragma once
#include "formats/int8.h"
#include "ops/int8_mm/int8_mm.h"

namespace {

template <class Vnni>
struct Int8MmVnni : Vnni {
  using typename Vnni::Raw, typename Vnni::Weight, typename Vnni::X;
  static constexpr float kMid = aoq::int8::kMidCode;
  static constexpr int kUnitK = aoq::int8::kUnitK;

  static Weight decode(Raw raw, int) { return raw; }

  static const X* words(const int8_t* codes, int64_t steps, X* memory) {
    std::memcpy(memory, codes, static_cast<size_t>(steps) * 4);
    return memory;
  }
};

}  // namespace
