// How the CUDA entries of ops with several plans or kernels find the one to run: autotune/autotune.h, timed on the
// device.
#pragma once
#include "autotune/autotune.h"
#include "cuda/cuda_entry.h"

namespace aoq {

// What a config is asked for and, if it is -1, measured for.
struct ConfigOf {
  const char* op;       // as errors have it
  const char* kernels;  // the op whose kernels run: what was measured for it holds for every op that runs them
  int64_t asked;        // the op's argument
  int configs;          // 0 to configs - 1 take these operands, as far as `fits` agrees
  const char* codes;    // what PackedMm does not say of 8-bit codes, or ""
};

// `fits(config)`: whether it is worth a trial; `run(config)` runs the op with it. Called where AOQ_AUTOTUNE is on.
int tuned_config(const ConfigOf& wanted, const PackedMm& mm, const Tensor& x, int capability, CudaStream stream,
                 const std::function<bool(int)>& fits, const std::function<void(int)>& run);

// Runs the op with the config asked for, or else measured, or else -1: the cost model's choice.
template <class Fits, class Run>
void run_config(const ConfigOf& wanted, const PackedMm& mm, const Tensor& x, const OnDevice& device, Fits fits,
                Run run) {
  check_value(wanted.asked >= -1 && wanted.asked < wanted.configs, wanted.op, "config", "expected -1 to ",
              wanted.configs - 1, " for this device and these operands, got ", wanted.asked);
  const bool measured = wanted.asked < 0 && autotune() != Autotune::off;
  run(measured ? tuned_config(wanted, mm, x, device.capability, device.stream, fits, run)
               : static_cast<int>(wanted.asked));
}

}  // namespace aoq
