# A kernel file says what it needs in its name: <stem>_<suffix>.cpp. Nothing is ever built for the build machine.
set(AOQ_FLAGS_avx2       -mavx2 -mfma -mf16c)
set(AOQ_FLAGS_avxvnni    ${AOQ_FLAGS_avx2} -mavxvnni)
set(AOQ_FLAGS_avx512     ${AOQ_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set(AOQ_FLAGS_avx512vnni ${AOQ_FLAGS_avx512} -mavx512vnni)
set(AOQ_FLAGS_avx512bf16 ${AOQ_FLAGS_avx512vnni} -mavx512bf16)
set(AOQ_FLAGS_avx512vbmi ${AOQ_FLAGS_avx512bf16} -mavx512vbmi)
set(AOQ_FLAGS_amx        ${AOQ_FLAGS_avx512vbmi} -mamx-tile -mamx-bf16 -mamx-int8)

# The ISAs of this processor's family.
set(AOQ_ISAS)
foreach(suffix avx2 avxvnni avx512 avx512vnni avx512bf16 avx512vbmi amx)
  set(files ${AOQ_SOURCES})
  list(FILTER files INCLUDE REGEX "_${suffix}\\.cpp$")
  list(REMOVE_ITEM AOQ_SOURCES ${files})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND AOQ_ISAS ${suffix})
    set(AOQ_SOURCES_${suffix} ${files})  # mm.cmake adds those that it makes
  endif()
endforeach()

# The kernels of an ISA: a target of their own, so that they share one precompiled <immintrin.h>, which takes longer to
# read than most of them take to compile. Only headers that sealed files may include are in it: test_tree.py.
function(aoq_isa_kernels target isa)
  add_library(${target} OBJECT ${AOQ_SOURCES_${isa}})
  aoq_library(${target})
  target_compile_options(${target} PRIVATE ${AOQ_FLAGS_${isa}})
  target_precompile_headers(${target} PRIVATE <immintrin.h> <cstdint> <cstring>)
endfunction()

# The same of CUDA kernels: <stem>_<suffix>.cu. sm80 is for that and all later ones: binaries for those there are
# (sm_80's runs on 8.6 as well, but ptxas schedules for each), and PTX for those to come. sm90a is Hopper's own.
set(AOQ_GENCODE_sm80  80:sm_80 86:sm_86 89:sm_89 90:sm_90,compute_90)
set(AOQ_GENCODE_sm89  89:sm_89 90:sm_90,compute_90)
set(AOQ_GENCODE_sm90a 90a:sm_90a)
set(AOQ_SMS sm80 sm89 sm90a)

# Instances of CUTLASS take long to compile: one binary for all of 8.x.
set(AOQ_GENCODE_cutlass_sm80 80:sm_80 90:sm_90,compute_90)

function(aoq_gencode gencodes files)
  if(AOQ_CUDA_BINARIES STREQUAL "one")
    list(GET gencodes 0 gencodes)
  endif()
  string(REGEX REPLACE "([^;]+):([^;]+)" "-gencode=arch=compute_\\1,code=[\\2]" flags "${gencodes}")
  set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${flags}")
endfunction()

# Those of AOQ_CUDA_SOURCES whose names match.
function(aoq_cuda_sources regex files)
  list(FILTER AOQ_CUDA_SOURCES INCLUDE REGEX "${regex}")
  set(${files} ${AOQ_CUDA_SOURCES} PARENT_SCOPE)
endfunction()

foreach(suffix ${AOQ_SMS})
  aoq_cuda_sources("_${suffix}\\.cu$" files)
  aoq_gencode("${AOQ_GENCODE_${suffix}}" "${files}")
endforeach()
aoq_cuda_sources("_cutlass_(.*_)?sm80\\.cu$" files)
aoq_gencode("${AOQ_GENCODE_cutlass_sm80}" "${files}")

# Quantizers give the bits that they give on the CPU: no contraction there either.
aoq_cuda_sources("_quantize_.*\\.cu$" files)
set_property(SOURCE ${files} APPEND PROPERTY COMPILE_OPTIONS -fmad=false)
