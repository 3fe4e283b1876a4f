// formats/nibbles_cuda.h and cuda/wgmma.h against CuTe's own description of the operands of mma.sync and wgmma, on the
// host.
#include <cstdio>
#include <cstdlib>

#include <cute/atom/copy_traits_sm90_tma_swizzle.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "cuda/wgmma.h"
#include "formats/nibbles_cuda.h"

using namespace cute;
namespace wgmma = aoq::wgmma;
using aoq::nibbles::activation_k;
using aoq::nibbles::Code;
using aoq::nibbles::code_at;

int checked = 0;

void expect(const char* what, int thread, int value, Code got, int row, int k) {
  ++checked;
  if (got.row == row && got.k == k) return;
  std::printf("%s: thread %d value %d: CuTe has (%d, %d), the layout (%d, %d)\n", what, thread, value, row, k, got.row,
              got.k);
  std::exit(1);
}

// 16 bits: value 2j + e of a fragment is half e of register a_j = (word >> 4j) & 0x000f000f, nibble j + 4e. In one
// atom.
template <class ALayout>
void check_16bit(const char* what, ALayout layout, int rows) {
  for (int thread = 0; thread < size<0>(layout); ++thread)
    for (int value = 0; value < size<1>(layout); ++value) {
      Code code = code_at({thread % 32, 0, value / 2 + 4 * (value % 2)});
      code.row += 16 * (thread / 32);  // a warp's tile
      const int at = layout(thread, value);
      expect(what, thread, value, code, at % rows, at / rows);
    }
}

// 8 bits: byte b of register a_r is (word >> 4 (r % 2)) & 0x0f of word r / 2, nibble 2b + r % 2; activations are
// permuted within each sixteen. In two atoms.
template <class ALayout>
void check_8bit(const char* what, ALayout layout, int rows) {
  for (int thread = 0; thread < size<0>(layout); ++thread)
    for (int value = 0; value < size<1>(layout); ++value) {
      const int r = value / 4, b = value % 4;
      Code code = code_at({thread % 32, r / 2, 2 * b + r % 2});
      code.row += 16 * (thread / 32);
      const int at = layout(thread, value), position = at / rows;
      expect(what, thread, value, code, at % rows, position / 16 * 16 + activation_k(position % 16));
    }
}

// The packed weight as a tensor of nibbles that CuTe can tile and copy: ((g, half, tile), (odd, pair, half, atom,
// tile)).
void check_packed() {
  constexpr int kTilesN = 2, kTilesK = 3;
  const auto layout = make_layout(
      make_shape(make_shape(_8{}, _2{}, Int<kTilesN>{}), make_shape(_2{}, _4{}, _2{}, _4{}, Int<kTilesK>{})),
      make_stride(make_stride(_128{}, _1{}, Int<1024 * kTilesK>{}), make_stride(_4{}, _32{}, _2{}, _8{}, _1024{})));
  for (int row = 0; row < size<0>(layout); ++row)
    for (int k = 0; k < size<1>(layout); ++k) {
      const aoq::nibbles::Bits at = aoq::nibbles::bits_of<4>(row, k, 64 * kTilesK);
      expect("packed", row, k, {static_cast<int>(at.byte), at.shift}, layout(row, k) / 2, layout(row, k) % 2 * 4);
    }
}

// Sums of wgmma: four warps, rows 16w on.
template <class CLayout>
void check_sums(const char* what, CLayout layout) {
  for (int thread = 0; thread < size<0>(layout); ++thread)
    for (int value = 0; value < size<1>(layout); ++value) {
      const wgmma::SumAt at = wgmma::sum_at(thread % 32, value);
      const int cute = layout(thread, value);
      expect(what, thread, value, {at.row + 16 * (thread / 32), at.column}, cute % 64, cute / 64);
    }
}

// Operand B in shared memory, as the copy engine swizzles it and wgmma's descriptor says.
template <class T>
void check_shared(const char* what) {
  using Atom = SM90::GMMA::Layout_K_SW128_Atom<T>;
  expect("copies swizzle", 0, 0, {static_cast<int>(detail::get_tma_swizzle_bits(Atom{})), 0},
         static_cast<int>(TMA::SmemSwizzleBits::B128), 0);
  constexpr int kColumns = 128, kAlongK = wgmma::kRowBytes / sizeof(T);
  const auto layout =
      as_position_independent_swizzle_layout(tile_to_shape(Atom{}, Shape<Int<kColumns>, Int<kAlongK>>{}));
  for (int column = 0; column < kColumns; ++column)
    for (int k = 0; k < kAlongK; ++k) {
      const auto ours = wgmma::swizzled(column * wgmma::kRowBytes + k * sizeof(T));
      expect(what, column, k, {static_cast<int>(ours), 0}, static_cast<int>(layout(column, k) * sizeof(T)), 0);
    }
  GmmaDescriptor cute;
  cute.desc_ = wgmma::descriptor(0x12400);
  expect("descriptor", 0, 0, {cute.bitfield.layout_type_, cute.bitfield.base_offset_},
         static_cast<int>(SM90::GMMA::LayoutType::B128), 0);
  expect("descriptor", 0, 1, {cute.bitfield.start_address_, cute.bitfield.stride_byte_offset_}, 0x12400 >> 4,
         8 * wgmma::kRowBytes >> 4);
}

int main() {
  check_16bit("mma.m16n8k16 bf16", MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>::ALayout{}, 16);
  check_16bit("mma.m16n8k16 f16", MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>::ALayout{}, 16);
  check_8bit("mma.m16n8k32 s8", MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>::ALayout{}, 16);
  using namespace SM90::GMMA;
  check_16bit("wgmma m64nNk16 RS", MMA_Traits<MMA_64x8x16_F32BF16BF16_RS<Major::K, Major::K>>::ALayout{}, 64);
  check_8bit("wgmma m64nNk32 s8 RS", MMA_Traits<MMA_64x8x32_S32S8S8_RS_TN>::ALayout{}, 64);
  check_8bit("wgmma m64nNk32 e4m3 RS", MMA_Traits<MMA_64x8x32_F32E4M3E4M3_RS_TN<>>::ALayout{}, 64);
  // CUTLASS's mixed-input collective asks for the order in which its converter finds neighbours apart.
  const Layout<Shape<_2, _4>, Stride<_4, _1>> shuffle{};
  for (int value = 0; value < 8; ++value) {
    const Code code = code_at({0, 0, shuffle(value)});  // fragment value `value`, by the layouts above
    const int at = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>::ALayout{}(0, value);
    expect("ValueShuffle", 0, value, code, at % 16, at / 16);
  }
  check_packed();
  check_sums("wgmma m64n32 sums", CLayout_64x32{});
  check_sums("wgmma m64n64 sums", CLayout_64x64{});
  check_sums("wgmma m64n128 sums", CLayout_64x128{});
  check_shared<bfloat16_t>("swizzled bf16");
  check_shared<int8_t>("swizzled int8");
  std::printf("%d fragment elements agree\n", checked);
}
