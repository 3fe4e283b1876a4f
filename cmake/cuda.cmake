# Adds libaoq_cuda if AOQ_CUDA allows. Sets AOQ_CUDA_TARGET, and AOQ_CUDA_BUILT: with what it is built, or "no: " and why.
set(AOQ_CUDA_TARGET)
if(NOT AOQ_CUDA)
  set(AOQ_CUDA_BUILT "no: built with AOQ_CUDA=OFF")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES OFF)  # a file's name says what it is built for: isa.cmake
if(NOT DEFINED ENV{CUDACXX} AND NOT CMAKE_CUDA_COMPILER)
  find_program(AOQ_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  if(AOQ_NVCC)
    set(ENV{CUDACXX} ${AOQ_NVCC})
  endif()
endif()
include(CheckLanguage)
if(AOQ_CUDA STREQUAL "AUTO")
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(AOQ_CUDA_BUILT "no: built without nvcc (install CUDA's compiler, 12.4 or later, and build again)")
    return()
  endif()
endif()
set(CMAKE_CUDA_STANDARD ${CMAKE_CXX_STANDARD})
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)

add_library(aoq_cuda SHARED ${AOQ_CUDA_SOURCES})
aoq_use_torch(aoq_cuda)
target_compile_definitions(aoq_cuda PRIVATE USE_CUDA)
target_include_directories(aoq_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(aoq_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-O3;-Wall;-Wextra>
  $<$<COMPILE_LANGUAGE:CUDA>:-O3;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra>)
# libtorch.so brings in libtorch_cuda where torch has CUDA, and nothing where it has not.
target_link_libraries(aoq_cuda PRIVATE aoq -Wl,--no-as-needed ${TORCH_DIR}/lib/libtorch.so -Wl,--as-needed
                                       ${TORCH_DIR}/lib/libtorch_cpu.so)
set_target_properties(aoq_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
list(JOIN AOQ_SMS " " sms)
set(AOQ_CUDA_BUILT "nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${sms}")
set(AOQ_CUDA_TARGET aoq_cuda)
