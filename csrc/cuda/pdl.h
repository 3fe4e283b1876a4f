// Programmatic dependent launch (PDL), of devices from compute capability 9.0 on: a kernel that waits by itself for
// what the one before it writes starts while that one ends.
#pragma once
#include <string>

#include "base/isa.h"

namespace aoq {

AOQ_API bool pdl();                              // whether kernels are launched so: unless AOQ_PDL=0
AOQ_API void set_pdl(const std::string& value);  // what AOQ_PDL does, in a running process; "" is as 1

}  // namespace aoq
