// Which config an op runs on CUDA where AOQ_AUTOTUNE asks for measured ones. Off, which it is by default, cost models
// choose. On, the configs of a problem that no file knows yet are timed with its first operands, and what is fastest
// goes to a file: docs/kernels/selection_cuda.md. What is here knows nothing of CUDA; autotune/autotune_cuda.h does.
#pragma once
#include <functional>
#include <string>

#include "base/isa.h"
#include "mm/packed_mm.h"

namespace aoq {

enum class Autotune { off, read, tune };

AOQ_API Autotune autotune();                          // AOQ_AUTOTUNE: 0 or nothing, read, 1
AOQ_API void set_autotune(const std::string& value);  // what it does, in a running process; forgets what was read

struct TunedProblem {
  std::string key;                // all that decides which config is fastest, save what `fits` asks of
  std::function<bool(int)> fits;  // whether a config takes these operands
  int configs;                    // 0 to configs - 1; -1 is the cost model's choice
};

// What is known of a problem by its op, sizes and dtypes. codes: what PackedMm does not say of 8-bit codes.
AOQ_API std::string tuned_key(const char* op, const PackedMm& mm, const char* codes, const std::string& device);

// The config to run, or -1. may_time: whether configs can be timed now. nanoseconds: of one call with a config.
AOQ_API int tuned_config(const TunedProblem& problem, const std::function<bool()>& may_time,
                         const std::function<double(int)>& nanoseconds);

}  // namespace aoq
