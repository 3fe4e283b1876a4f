# CUTLASS's headers: -DCUTLASS_DIR=DIR, a checkout of it, or what `pip install --no-deps nvidia-cutlass==4.2.0.0` puts beside
# torch. Sets CUTLASS_INCLUDE_DIRS, empty where there are none, and AOQ_CUTLASS_BUILT: the version, or "no: " and why.
set(CUTLASS_DIR "" CACHE PATH "CUTLASS, a checkout of it; by default the Python package nvidia-cutlass")
set(cutlass_at ${CUTLASS_DIR})
if(NOT cutlass_at)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "
import importlib.util, pathlib, sysconfig
spec = importlib.util.find_spec('cutlass_library')
found = pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path(sysconfig.get_path('purelib')) / 'cutlass_library'
print(found / 'source', end='')" OUTPUT_VARIABLE cutlass_at COMMAND_ERROR_IS_FATAL ANY)
endif()

set(CUTLASS_INCLUDE_DIRS)
if(NOT AOQ_CUTLASS)
  set(AOQ_CUTLASS_BUILT "no: built with AOQ_CUTLASS=OFF")
elseif(EXISTS ${cutlass_at}/include/cutlass/version.h)
  file(STRINGS ${cutlass_at}/include/cutlass/version.h defines REGEX "^#define CUTLASS_(MAJOR|MINOR|PATCH) ")
  string(REGEX MATCHALL "[0-9]+" numbers "${defines}")
  list(JOIN numbers "." AOQ_CUTLASS_BUILT)
  if(AOQ_CUTLASS_BUILT VERSION_LESS 4.2)
    message(FATAL_ERROR "aoq needs CUTLASS 4.2 or later, found ${AOQ_CUTLASS_BUILT} in ${cutlass_at}")
  endif()
  set(CUTLASS_INCLUDE_DIRS ${cutlass_at}/include ${cutlass_at}/tools/util/include)
elseif(CUTLASS_DIR)
  message(FATAL_ERROR "CUTLASS_DIR=${CUTLASS_DIR} has no include/cutlass/version.h")
else()
  set(AOQ_CUTLASS_BUILT "no: built without CUTLASS (pip install --no-deps nvidia-cutlass==4.2.0.0, and build again)")
endif()
