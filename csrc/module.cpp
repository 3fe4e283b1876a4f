// aoq._C answers questions about this build and machine. No tensor passes through here. Python's limited API: one
// binary for every Python, as the ops are one for every torch.
#define Py_LIMITED_API 0x030a0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "autotune/autotune.h"
#include "base/isa.h"
#include "base/kernel.h"
#include "cuda/pdl.h"
#include "cuda/sm.h"

namespace aoq {
AOQ_API std::map<std::string, std::string> format_texts();  // mm/mm.h, which needs torch's headers
}

namespace {

#if defined(AOQ_EMULATE_AMX)
constexpr const char* kAmx = "emulated, for tests";
#else
constexpr const char* kAmx = "native";
#endif

std::map<std::string, std::string> build_info() {
  return {{"compiler", AOQ_COMPILER},
          {"torch_target", "2.10"},
          {"cuda", AOQ_CUDA},
          {"cutlass", AOQ_CUTLASS},
          {"amx", kAmx}};
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const aoq::Isa isa : aoq::supported_isas()) names.emplace_back(aoq::name(isa));
  return names;
}

PyObject* to_python(const std::string& text) {
  return PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size()));
}

PyObject* to_python(const std::vector<std::string>& texts) {
  PyObject* list = PyList_New(0);
  for (const std::string& text : texts) {
    PyObject* item = list ? to_python(text) : nullptr;
    if (!item || PyList_Append(list, item) != 0) Py_CLEAR(list);
    Py_XDECREF(item);
  }
  return list;
}

PyObject* to_python(const std::map<std::string, std::string>& texts) {
  PyObject* dict = PyDict_New();
  for (const auto& [key, text] : texts) {
    PyObject* value = dict ? to_python(text) : nullptr;
    if (!value || PyDict_SetItemString(dict, key.c_str(), value) != 0) Py_CLEAR(dict);
    Py_XDECREF(value);
  }
  return dict;
}

// What `answer` returns, or the Python exception for what it throws.
template <class Answer>
PyObject* guarded(Answer answer) {
  try {
    return answer();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// A method without arguments that returns what `answer` does.
template <auto answer>
PyObject* question(PyObject*, PyObject*) {
  return guarded([] { return to_python(answer()); });
}

// A method that takes a name.
template <void (*set)(const std::string&)>
PyObject* setter(PyObject*, PyObject* args) {
  const char* name;
  if (!PyArg_ParseTuple(args, "s", &name)) return nullptr;
  return guarded([&] {
    set(name);
    Py_INCREF(Py_None);
    return Py_None;
  });
}

PyObject* kernels(PyObject*, PyObject* args) {
  const char* op;
  if (!PyArg_ParseTuple(args, "s", &op)) return nullptr;
  return guarded([&] { return to_python(aoq::kernel_names(op)); });
}

aoq::Dtype dtype_of(const std::string& name) {
  if (name == "bfloat16") return aoq::Dtype::bf16;
  if (name == "float16") return aoq::Dtype::f16;
  if (name == "float32") return aoq::Dtype::f32;
  throw std::invalid_argument("x_dtype: expected bfloat16, float16 or float32, got " + name);
}

PyObject* kernel(PyObject*, PyObject* args) {
  const char *op, *x_dtype;
  long long m;
  if (!PyArg_ParseTuple(args, "sLs", &op, &m, &x_dtype)) return nullptr;
  return guarded([&] { return to_python(aoq::kernel_name(op, m, dtype_of(x_dtype))); });
}

PyObject* cuda_kernels(PyObject*, PyObject* args) {
  const char* op;
  int capability;
  if (!PyArg_ParseTuple(args, "si", &op, &capability)) return nullptr;
  return guarded([&] { return to_python(aoq::cuda_kernel_names(op, capability)); });
}

std::string isa() { return aoq::name(aoq::active_isa()); }
std::string last_kernel() { return aoq::last_kernel.load(); }

PyMethodDef methods[] = {
    {"isa", question<isa>, METH_NOARGS, "The ISA in use: AOQ_ISA, or the best here."},
    {"isas", question<isas>, METH_NOARGS, "The ISAs that this machine can run, best first."},
    {"set_isa", setter<aoq::set_isa>, METH_VARARGS, "What AOQ_ISA does, for tests and benchmarks."},
    {"formats", question<aoq::format_texts>, METH_NOARGS,
     "The formats of weights by name: bits of a code, whether k comes in groups, whether codes are fp8 (0 or 1), the "
     "op "
     "that multiplies x as given, the op for x as int8 or none."},
    {"ops", question<aoq::op_names>, METH_NOARGS, "The ops of torch.ops.aoq."},
    {"kernels", kernels, METH_VARARGS, "The kernels of op under the ISA in use, best first."},
    {"kernel", kernel, METH_VARARGS, "The kernel that op runs under the ISA in use for m rows of x of this dtype."},
    {"cuda_kernels", cuda_kernels, METH_VARARGS,
     "The CUDA kernels of op for a device of this compute capability (10 * major + minor), best first."},
    {"set_sm", setter<aoq::set_sm>, METH_VARARGS, "What AOQ_SM does; an empty name allows all."},
    {"set_pdl", setter<aoq::set_pdl>, METH_VARARGS, "What AOQ_PDL does; an empty value is as 1."},
    {"set_autotune", setter<aoq::set_autotune>, METH_VARARGS, "What AOQ_AUTOTUNE does; forgets what was read."},
    {"last_kernel", question<last_kernel>, METH_NOARGS, "The kernel that the last op call chose."},
    {"build_info", question<build_info>, METH_NOARGS, "How this binary was built."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return guarded([] {
    aoq::active_isa();  // a bad AOQ_ISA, AOQ_SM, AOQ_PDL or AOQ_AUTOTUNE fails the import, not the first matmul
    aoq::allowed(aoq::Sm::sm80, 80);
    aoq::pdl();
    aoq::autotune();
    return PyModule_Create(&module);
  });
}
