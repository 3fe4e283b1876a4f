# A kernel file says what it needs in its name: csrc/<op>/<op>_<suffix>.cpp. Nothing is ever built for the build machine.
set(AOQ_FLAGS_avx2       -mavx2 -mfma -mf16c)
set(AOQ_FLAGS_avx512     ${AOQ_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set(AOQ_FLAGS_avx512vnni ${AOQ_FLAGS_avx512} -mavx512vnni)
set(AOQ_FLAGS_avx512bf16 ${AOQ_FLAGS_avx512vnni} -mavx512bf16)
set(AOQ_FLAGS_amx        ${AOQ_FLAGS_avx512bf16} -mamx-tile -mamx-bf16 -mamx-int8)

foreach(suffix avx2 avx512 avx512vnni avx512bf16 amx)
  file(GLOB files CONFIGURE_DEPENDS csrc/*/*_${suffix}.cpp)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${AOQ_FLAGS_${suffix}}")
  else()
    list(REMOVE_ITEM AOQ_SOURCES ${files})  # relative globs above make the paths equal
  endif()
endforeach()
