# torch through its stable ABI: the include folder and two libraries of the installed wheel.
#
# Not find_package(Torch): on a CUDA wheel it asks for the whole toolkit and ignores our list of
# architectures.
if(NOT EXISTS "${MARGIN_EXT_TORCH_DIR}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "MARGIN_EXT_TORCH_DIR is '${MARGIN_EXT_TORCH_DIR}', which is not the folder "
                      "of a torch >= 2.11. `pip install .` finds and passes it.")
endif()

# A new torch may lie at a new place: look again whenever the folder changed.
if(NOT "${MARGIN_EXT_TORCH_DIR}" STREQUAL "${MARGIN_EXT_TORCH_DIR_SEARCHED}")
  unset(MARGIN_TORCH_LIBRARY CACHE)
  unset(MARGIN_TORCH_CPU_LIBRARY CACHE)
  set(MARGIN_EXT_TORCH_DIR_SEARCHED "${MARGIN_EXT_TORCH_DIR}" CACHE INTERNAL "")
endif()
find_library(MARGIN_TORCH_CPU_LIBRARY torch_cpu PATHS "${MARGIN_EXT_TORCH_DIR}/lib"
             NO_DEFAULT_PATH REQUIRED)
find_library(MARGIN_TORCH_LIBRARY torch PATHS "${MARGIN_EXT_TORCH_DIR}/lib" NO_DEFAULT_PATH REQUIRED)

file(GLOB torch_cuda "${MARGIN_EXT_TORCH_DIR}/lib/*torch_cuda.*")
set(MARGIN_TORCH_HAS_CUDA FALSE)
if(torch_cuda)
  set(MARGIN_TORCH_HAS_CUDA TRUE)
endif()

add_library(margin_torch INTERFACE)
target_include_directories(margin_torch SYSTEM INTERFACE "${MARGIN_EXT_TORCH_DIR}/include")
# The oldest torch whose ABI we may use, whatever torch's headers are: 2.11.
target_compile_definitions(margin_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_libraries(margin_torch INTERFACE "${MARGIN_TORCH_CPU_LIBRARY}")
# torch's headers name themselves in error messages, by the path of whoever built us.
target_compile_options(
  margin_torch
  INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${MARGIN_EXT_TORCH_DIR}/include/=>")
