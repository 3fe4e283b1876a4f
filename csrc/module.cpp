// aoq._C answers questions about this build and machine. No tensor passes through here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/isa.h"
#include "core/kernel.h"
#include "core/sm.h"

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"compiler", AOQ_COMPILER},
      {"torch_target", "2.10"},
      {"cuda", AOQ_CUDA},
#if defined(AOQ_EMULATE_AMX)
      {"amx", "emulated, for tests"},
#else
      {"amx", "native"},
#endif
  };
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const aoq::Isa isa : aoq::supported_isas()) names.emplace_back(aoq::name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  aoq::active_isa();  // a bad AOQ_ISA or AOQ_SM fails the import, not the first matmul
  aoq::allowed(aoq::Sm::sm80, 80);
  m.def("isa", [] { return std::string(aoq::name(aoq::active_isa())); }, "The ISA in use: AOQ_ISA, or the best here.");
  m.def("isas", &isas, "The ISAs that this machine can run, best first.");
  m.def("set_isa", &aoq::set_isa, pybind11::arg("name"), "What AOQ_ISA does, for tests and benchmarks.");
  m.def("ops", &aoq::op_names, "The ops of torch.ops.aoq.");
  m.def("kernels", &aoq::kernel_names, pybind11::arg("op"), "The kernels of op under the ISA in use, best first.");
  m.def("cuda_kernels", &aoq::cuda_kernel_names, pybind11::arg("op"), pybind11::arg("capability"),
        "The CUDA kernels of op for a device of this compute capability (10 * major + minor), best first.");
  m.def("set_sm", &aoq::set_sm, pybind11::arg("name"), "What AOQ_SM does; an empty name allows all.");
  m.def("last_kernel", [] { return std::string(aoq::last_kernel); }, "The kernel that the last op call chose.");
  m.def("build_info", &build_info, "How this binary was built.");
}
