#include "mm/mm.h"

#include <cstdio>

#include "mm/units.h"
#include "mm_formats.h"  // all of formats/formats.inc

namespace aoq {

#define AOQ_MM_KERNEL(format, x, isa, op) void mm_##x##_##format##_##isa(const PackedMm&);
#include "mm_kernels.inc"
#undef AOQ_MM_KERNEL

namespace {

// What kernels leave to the next row. bf16 pairs and AMX's tiles hold no more bits than bf16 has; of a tile one row of
// x would leave fifteen sixteenths empty.
[[maybe_unused]] constexpr bool only_bf16(int64_t, Dtype x) { return x == Dtype::bf16; }
[[maybe_unused]] constexpr bool several(int64_t m, Dtype) { return m != 1; }
[[maybe_unused]] constexpr bool several_bf16(int64_t m, Dtype x) { return m != 1 && x == Dtype::bf16; }

constexpr Takes takes_of(XAs x_as, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx) return x_as == XAs::given ? several_bf16 : several;
  if (isa == Isa::avx512bf16 || isa == Isa::avx512vbmi) return only_bf16;
#endif
  return nullptr;
}

struct MmKernel {
  FormatId format;
  XAs x_as;
  Isa isa;
  Takes takes;
  const char* op;
  const char* name;
  void (*run)(const PackedMm&);
};

// By format and kind of x, best first.
constexpr MmKernel kKernels[] = {
#define AOQ_MM_KERNEL(format, x, isa, op) \
  {FormatId::format, XAs::x, Isa::isa, takes_of(XAs::x, Isa::isa), #op, #op "_" #isa, mm_##x##_##format##_##isa},
#include "mm_kernels.inc"
#undef AOQ_MM_KERNEL
};

constexpr bool same(const char* a, const char* b) {
  for (; *a && *a == *b; ++a) ++b;
  return *a == *b;
}

// What the codes of a table stand for, or null.
template <class Format>
constexpr const float* values_of() {
  if constexpr (Format::kTable)
    return kValues<Format>.f32;
  else
    return nullptr;
}

template <class Format>
constexpr FormatInfo info(const char* name, const char* op, const char* op_of_int8) {
  using P = Planes<Format::kBits>;
  return {name,          {op, same(op_of_int8, "none") ? nullptr : op_of_int8},
          Format::kBits, P::kUnitK,
          P::kUnitBytes, Format::kGrouped,
          Format::kFp8,  values_of<Format>()};
}

constexpr FormatInfo kFormats[] = {
#define AOQ_FORMAT(name, type, op, op_of_int8) info<type>(#name, #op, #op_of_int8),
#include "formats/formats.inc"
#undef AOQ_FORMAT
};
constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

// What engines read of units, of one row: the codes that formats/format.h puts there.
struct OneLane {
  using Type = uint32_t;
  static constexpr Type load(const uint8_t* data) {
    return data[0] | uint32_t{data[1]} << 8 | uint32_t{data[2]} << 16 | uint32_t{data[3]} << 24;
  }
  static constexpr Type right(Type a, int count) { return a >> count; }
  static constexpr Type left(Type a, int count) { return a << count; }
  static constexpr Type masked(Type a, uint32_t mask) { return a & mask; }
  static constexpr Type either(Type a, Type b) { return a | b; }
};
template <class Format, bool kByWord>
constexpr bool units_are_read() {
  using U = Units<OneLane, Format, kByWord>;
  using P = Planes<Format::kBits>;
  if (P::kBytes) return true;
  uint8_t stream[2 * P::kUnitBytes] = {};
  const auto code = [](int k) { return static_cast<uint32_t>((37 * k + 11) % (1 << Format::kBits)); };
  for (int k = 0; k < 2 * P::kUnitK; ++k)
    add_code<Format::kBits>(stream + k / P::kUnitK * P::kUnitBytes, 0, k % P::kUnitK, static_cast<int>(code(k)));
  for (int unit = 0; unit < 2 * P::kUnitK / U::kUnitK; ++unit) {
    const auto words = U::load_unit(stream, unit);
    for (int word = 0; word < U::kUnitWords; ++word) {
      const int first = unit * U::kUnitK + 8 * word;
      const uint32_t even = code(first) | code(first + 4) << 8 | code(first + 1) << 16 | code(first + 5) << 24;
      const uint32_t odd = code(first + 2) | code(first + 6) << 8 | code(first + 3) << 16 | code(first + 7) << 24;
      if (U::bytes(words, word, false) != even || U::bytes(words, word, true) != odd) return false;
      for (int pair = 0; pair < 4; ++pair)
        if (U::halves(words, word, pair) != (code(first + 2 * pair) | code(first + 2 * pair + 1) << 16)) return false;
      for (int k = 0; k < 8; ++k)
        if (U::lanes(words, word, k) != code(first + k)) return false;
    }
  }
  return true;
}
#define AOQ_FORMAT(name, type, op, op_of_int8) \
  static_assert(units_are_read<type, false>() && units_are_read<type, true>(), #name);
#include "formats/formats.inc"
#undef AOQ_FORMAT

// Where a format's rows begin in the table.
struct Starts {
  const MmKernel* row[kFormatCount][2] = {};
  constexpr Starts() {
    for (const MmKernel& kernel : kKernels) {
      const MmKernel*& first = row[static_cast<int>(kernel.format)][static_cast<int>(kernel.x_as)];
      if (!first) first = &kernel;
    }
  }
};
constexpr Starts kStarts{};

const bool kRegistered = [] {
  for (const MmKernel& kernel : kKernels) register_kernels(kernel.op, {{kernel.isa, kernel.name, kernel.takes}});
  return true;
}();

}  // namespace

const FormatInfo& info_of(FormatId format) { return kFormats[static_cast<int>(format)]; }

const FormatId* find_format(const std::string& name) {
  static constexpr FormatId kIds[] = {
#define AOQ_FORMAT(name, type, op, op_of_int8) FormatId::name,
#include "formats/formats.inc"
#undef AOQ_FORMAT
  };
  for (const FormatId& id : kIds)
    if (name == info_of(id).name) return &id;
  return nullptr;
}

std::string format_names() {
  std::string names;
  for (const FormatInfo& info : kFormats) names += (names.empty() ? "" : ", ") + std::string(info.name);
  return names;
}

std::map<std::string, std::string> format_texts() {
  std::map<std::string, std::string> texts;
  for (const FormatInfo& info : kFormats) {
    std::string& text = texts[info.name];
    text = join(info.bits, " ", info.grouped, " ", info.fp8, " ", info.op[0], " ", info.op[1] ? info.op[1] : "none");
    for (int code = 0; info.values && code < 1 << info.bits; ++code) {
      char value[32];  // hexadecimal: all of it
      std::snprintf(value, sizeof(value), " %a", static_cast<double>(info.values[code]));
      text += value;
    }
  }
  return texts;
}

bool register_mm_op(const char* op, FormatId format, XAs x_as, bool as_bf16) {
  std::vector<KernelName> names;
  const auto takes_of = [&](Takes takes) {
    return !as_bf16 ? takes : takes == several_bf16 ? several : takes == only_bf16 ? nullptr : takes;
  };
  for (const MmKernel& kernel : kKernels)
    if (kernel.format == format && kernel.x_as == x_as)
      names.push_back({kernel.isa, kernel.name, takes_of(kernel.takes)});
  return register_op(op, names);
}

void run_mm(FormatId format, XAs x_as, const PackedMm& args) {
  const MmKernel* kernel = kStarts.row[static_cast<int>(format)][static_cast<int>(x_as)];
  while (!allowed(features_of(kernel->isa)) || (kernel->takes && !kernel->takes(args.m, args.x.dtype))) ++kernel;
  last_kernel.store(kernel->name, std::memory_order_relaxed);
  kernel->run(args);
}

}  // namespace aoq
