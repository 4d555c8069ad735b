# libmargin_ext_cuda: csrc/cuda and its registration with torch.
#
# MARGIN_EXT_CUDA=auto builds it where torch has CUDA and a working nvcc is found: a torch without
# CUDA could not use it, and it takes many minutes. MARGIN_EXT_CUDA=on builds it with a CPU-only
# torch too: the few symbols of libtorch_cuda stay undefined and are found when the library is
# loaded, which margin_ext does only where torch itself has CUDA.
include(CheckLanguage)
include(cuda_architectures)

set(MARGIN_CUDA_BUILT FALSE)
set(MARGIN_CUDA_SKIPPED "")

file(GLOB cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu"
     "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cpp")
set(cuda_registration "${PROJECT_SOURCE_DIR}/csrc/torch/ops_cuda.cpp")

string(TOLOWER "${MARGIN_EXT_CUDA}" wanted)
if(wanted MATCHES "^(off|0|false|no)$")
  set(MARGIN_CUDA_SKIPPED "built with MARGIN_EXT_CUDA=off")
elseif(NOT cuda_sources OR NOT EXISTS "${cuda_registration}")
  set(MARGIN_CUDA_SKIPPED "this source tree has no CUDA sources")
elseif(wanted STREQUAL "auto" AND NOT MARGIN_TORCH_HAS_CUDA)
  set(MARGIN_CUDA_SKIPPED "the torch that it was built with has no CUDA")
else()
  find_program(MARGIN_NVCC nvcc
               HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin)
  if("$ENV{CUDACXX}" STREQUAL "" AND MARGIN_NVCC)
    set(ENV{CUDACXX} "${MARGIN_NVCC}")
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    if(MARGIN_NVCC)
      set(MARGIN_CUDA_SKIPPED "nvcc could not compile a test program")
    else()
      set(MARGIN_CUDA_SKIPPED "nvcc was not found when it was built")
    endif()
  endif()
endif()

if(MARGIN_CUDA_SKIPPED)
  if(wanted MATCHES "^(on|1|true|yes)$")
    message(FATAL_ERROR "MARGIN_EXT_CUDA=on, but: ${MARGIN_CUDA_SKIPPED}. Put nvcc on PATH or set "
                        "CUDA_HOME, or use MARGIN_EXT_CUDA=auto.")
  endif()
  message(STATUS "No CUDA library: ${MARGIN_CUDA_SKIPPED}")
  return()
endif()

margin_cuda_architectures("${CMAKE_CUDA_COMPILER}" CMAKE_CUDA_ARCHITECTURES)
message(STATUS "CUDA library for: ${CMAKE_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
margin_drop_fast_math(CMAKE_CUDA_FLAGS CMAKE_CUDA_FLAGS_RELEASE)
find_package(CUDAToolkit REQUIRED)

add_library(margin_ext_cuda SHARED ${cuda_sources} "${cuda_registration}")
string(REPLACE ";" "," architecture_text "${CMAKE_CUDA_ARCHITECTURES}")
target_compile_definitions(
  margin_ext_cuda PRIVATE USE_CUDA "MARGIN_CUDA_ARCHITECTURES=\"${architecture_text}\"")
target_link_libraries(margin_ext_cuda PRIVATE margin_common margin_torch "${MARGIN_TORCH_LIBRARY}"
                                              CUDA::cudart_static)
# libtorch brings libtorch_cuda with it where there is one. We use no symbol of libtorch itself, so
# some linkers would drop it, and then nothing of libtorch_cuda would be found.
target_link_options(margin_ext_cuda PRIVATE -Wl,--no-as-needed)

install(TARGETS margin_ext_cuda LIBRARY DESTINATION .)
set(MARGIN_CUDA_BUILT TRUE)
