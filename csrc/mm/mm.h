// Every matmul with a packed weight, on the CPU: which kernels there are for a format and a kind of x, which one runs,
// and the checked entry that named ops and `mm` share.
#pragma once
#include <map>

#include "base/kernel.h"
#include "mm/packed_mm_entry.h"

namespace aoq {

enum class FormatId : int8_t {
#define AOQ_FORMAT(name, type, op, op_of_int8) name,
#include "formats/formats.inc"
#undef AOQ_FORMAT
};

// How x meets the weight: multiplied as it is given, or quantized to int8 per row first.
enum class XAs : int8_t { given, int8 };

// What operands have to be of a format, at run time.
struct FormatInfo {
  const char* name;
  const char* op[2];  // by XAs; null where there is none
  int bits;
  int64_t unit_k, unit_bytes;
  bool grouped, fp8;
  const float* values;  // of a table: what each code stands for; or null
};
AOQ_API const FormatInfo& info_of(FormatId format);
// The format with this name, or null.
AOQ_API const FormatId* find_format(const std::string& name);
AOQ_API std::string format_names();  // all of them, as errors list them
// For _C: each format with "bits grouped fp8 op op_of_int8", in numbers and names; "none" where there is no op; then
// what each code of a table stands for.
AOQ_API std::map<std::string, std::string> format_texts();

// For _C: there is an op `op`, which runs the kernels of this format.
// as_bf16: x becomes that before they see it.
bool register_mm_op(const char* op, FormatId format, XAs x_as, bool as_bf16 = false);

// Runs the first kernel that takes `args`.
void run_mm(FormatId format, XAs x_as, const PackedMm& args);

// Checks operands, then multiplies. group: of a grouped format, else nothing. prepare(args) may change them.
template <class Prepare>
Tensor mm(const char* op, FormatId format, XAs x_as, const PackedOperands& t, int64_t n, std::optional<int64_t> group,
          int64_t config, Prepare prepare) {
  check_value(config == -1, op, "config", "expected -1, as the CPU's kernels have none, got ", config);
  const FormatInfo& info = info_of(format);
  const auto kernel = [&] { return [&](PackedMm args) { prepare(args, [&] { run_mm(format, x_as, args); }); }; };
  return packed_mm(op, t, n, group, info.unit_k, kernel, info.unit_bytes);
}
inline Tensor mm(const char* op, FormatId format, XAs x_as, const PackedOperands& t, int64_t n,
                 std::optional<int64_t> group, int64_t config) {
  return mm(op, format, x_as, t, n, group, config, [](PackedMm&, const auto& run) { run(); });
}

}  // namespace aoq
