# Adds libaoq_cuda if AOQ_CUDA allows. Sets AOQ_CUDA_TARGET, and AOQ_CUDA_BUILT: with what it is built, or "no: " and why.
# AOQ_CUTLASS_BUILT says the same of the kernels that are made with CUTLASS.
set(AOQ_CUDA_TARGET)
set(AOQ_CUTLASS_BUILT "no: built without CUDA kernels")
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

# Kernels made with CUTLASS: only where it is. Their lines in kernels_cuda.inc then have no function.
include(third_party/cutlass.cmake)
aoq_cuda_sources("_cutlass_.*\\.cu$" AOQ_CUTLASS_SOURCES)
if(NOT CUTLASS_INCLUDE_DIRS)
  list(REMOVE_ITEM AOQ_CUDA_SOURCES ${AOQ_CUTLASS_SOURCES})
endif()
# GDC: griddepcontrol, so that a kernel starts while the one before it ends. Before stream-K comes a memset, and CUTLASS
# 4.2 has a scheduler for it that does not compile with GDC.
set(programmatic ${AOQ_CUTLASS_SOURCES})
list(FILTER programmatic EXCLUDE REGEX "_stream_k_")
set_property(SOURCE ${programmatic} APPEND PROPERTY COMPILE_DEFINITIONS CUTLASS_ENABLE_GDC_FOR_SM90)

foreach(file ${AOQ_CUDA_SOURCES})
  get_source_file_property(options ${file} COMPILE_OPTIONS)
  if(file MATCHES "\\.cu$" AND NOT options MATCHES "gencode")
    message(FATAL_ERROR "${file}: isa.cmake gave it no architecture: expected a name that ends in one of ${AOQ_SMS}")
  endif()
endforeach()

add_library(aoq_cuda SHARED ${AOQ_CUDA_SOURCES})
aoq_use_torch(aoq_cuda)
# As many at a time as memory allows (ninja alone has such pools).
cmake_host_system_information(RESULT memory QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR jobs "${memory} / 8000")
if(jobs LESS 1)
  set(jobs 1)
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS nvcc=${jobs})
set_property(TARGET aoq_cuda PROPERTY JOB_POOL_COMPILE nvcc)
target_include_directories(aoq_cuda PRIVATE ${AOQ_GENERATED})
target_compile_definitions(aoq_cuda PRIVATE USE_CUDA)
target_include_directories(aoq_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
if(CUTLASS_INCLUDE_DIRS)
  target_compile_definitions(aoq_cuda PRIVATE AOQ_CUTLASS)
  target_include_directories(aoq_cuda SYSTEM PRIVATE ${CUTLASS_INCLUDE_DIRS})
endif()
target_compile_options(aoq_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-O3;-Wall;-Wextra>
  $<$<COMPILE_LANGUAGE:CUDA>:-O3;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra>)
# libtorch.so brings in libtorch_cuda where torch has CUDA, and nothing where it has not.
target_link_libraries(aoq_cuda PRIVATE aoq -Wl,--no-as-needed ${TORCH_DIR}/lib/libtorch.so -Wl,--as-needed
                                       ${TORCH_DIR}/lib/libtorch_cpu.so)
# As of libaoq's entries; nvcc has its own ways.
target_precompile_headers(aoq_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:<torch/csrc/stable/library.h$<ANGLE-R>>")
set_target_properties(aoq_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
list(JOIN AOQ_SMS " " sms)
set(AOQ_CUDA_BUILT "nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${sms}")
if(AOQ_CUDA_BINARIES STREQUAL "one")
  string(APPEND AOQ_CUDA_BUILT ", one binary each")
endif()
set(AOQ_CUDA_TARGET aoq_cuda)
