// Ops that multiply by a weight of one format, with an argument for each of its parts: what `mm` does for all formats.
// AOQ_MM_OP(op, format, struct, x) in an op's file is its schema and its kernel on the CPU.
#pragma once
#include <torch/csrc/stable/library.h>

#include "mm/mm.h"
#include "mm/mm_arguments.h"
#include "mm_formats.h"  // all of formats/formats.inc

namespace aoq {
namespace {

// The op of a format for x as given, or as int8.
template <class Format, FormatId kFormat, XAs kXAs>
struct MmOp {
  using Arguments = MmArguments<Format::kGrouped, kXAs == XAs::int8>;
  static Tensor run(const PackedOperands& t, int64_t n, std::optional<int64_t> group, int64_t config) {
    return mm(info_of(kFormat).op[static_cast<int>(kXAs)], kFormat, kXAs, t, n, group, config);
  }
};

}  // namespace
}  // namespace aoq

#define AOQ_MM_OP(op, format, Format, x)                                                            \
  namespace aoq {                                                                                   \
  namespace {                                                                                       \
  using Op = MmOp<Format, FormatId::format, XAs::x>;                                                \
  const bool kRegistered = register_mm_op(#op, FormatId::format, XAs::x);                           \
  }                                                                                                 \
  }                                                                                                 \
  STABLE_TORCH_LIBRARY_FRAGMENT(aoq, m) { m.def(aoq::mm_schema<aoq::Op::Arguments>(#op).c_str()); } \
  STABLE_TORCH_LIBRARY_IMPL(aoq, CPU, m) { m.impl(#op, TORCH_BOX(&aoq::Op::Arguments::call<aoq::Op>)); }
