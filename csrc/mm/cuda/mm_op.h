// Ops that multiply by a weight of one format, on CUDA: AOQ_MM_CUDA_OP(op, format, struct, x) is the kernel there of an
// op that mm/mm_op.h makes.
#pragma once
#include <torch/csrc/stable/library.h>

#include "mm/cuda/mm_cuda.h"
#include "mm/mm_arguments.h"
#include "mm_formats.h"  // all of formats/formats.inc

#define AOQ_MM_CUDA_OP(op, format, Format, x)                                                             \
  namespace aoq {                                                                                         \
  namespace {                                                                                             \
  struct Op {                                                                                             \
    using Arguments = MmArguments<Format::kGrouped, XAs::x == XAs::int8>;                                 \
    static Tensor run(const PackedOperands& t, int64_t n, std::optional<int64_t> group, int64_t config) { \
      const auto as = XAs::x == XAs::int8 ? std::optional<XCodes>{{Codes::int8}} : std::nullopt;          \
      return mm_on_cuda(#op, FormatId::format, as, t, n, group, config);                                  \
    }                                                                                                     \
  };                                                                                                      \
  }                                                                                                       \
  }                                                                                                       \
  STABLE_TORCH_LIBRARY_IMPL(aoq, CUDA, m) { m.impl(#op, TORCH_BOX(&aoq::Op::Arguments::call<aoq::Op>)); }
