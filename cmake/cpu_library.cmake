# libmargin_ext_cpu: csrc/cpu and the op schemas of csrc/torch.
#
# The row kernels are compiled once per instruction set and chosen when they run, so the library
# works on every processor and is fast on the new ones.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

set(row_kernels "${PROJECT_SOURCE_DIR}/csrc/cpu/row_kernels.cpp")
file(GLOB cpu_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cpu/*.cpp")
list(REMOVE_ITEM cpu_sources "${row_kernels}")
file(GLOB torch_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/torch/*.cpp")
list(REMOVE_ITEM torch_sources "${PROJECT_SOURCE_DIR}/csrc/torch/ops_cuda.cpp")

# No fast-math: NaN, infinities and the order of sums are part of what the ops promise. errno and
# floating-point traps are not, and keep loops from being vectorised; neither is whether a * b + c
# is rounded once or twice.
set(kernel_flags -fno-math-errno -fno-trapping-math -ffp-contract=fast)
set_source_files_properties(${cpu_sources} PROPERTIES COMPILE_OPTIONS "${kernel_flags}")

add_library(margin_ext_cpu SHARED ${cpu_sources} ${torch_sources})
target_link_libraries(margin_ext_cpu PRIVATE margin_common margin_torch)
if(NOT APPLE)
  target_link_options(margin_ext_cpu PRIVATE -Wl,-z,defs)
endif()

set(MARGIN_INSTRUCTION_SETS "")
function(add_row_kernels isa)
  add_library(row_kernels_${isa} OBJECT "${row_kernels}")
  target_compile_definitions(row_kernels_${isa} PRIVATE MARGIN_ISA=${isa})
  target_compile_options(row_kernels_${isa} PRIVATE ${kernel_flags} ${ARGN})
  target_link_libraries(row_kernels_${isa} PRIVATE margin_common)
  target_sources(margin_ext_cpu PRIVATE "$<TARGET_OBJECTS:row_kernels_${isa}>")
  set(MARGIN_INSTRUCTION_SETS ${MARGIN_INSTRUCTION_SETS} ${isa} PARENT_SCOPE)
endfunction()

if(EXISTS "${row_kernels}")
  add_row_kernels(baseline)
  # Asked of the compiler, not of the machine: on macOS the two can differ.
  check_cxx_source_compiles("
    #if !defined(__x86_64__)
    #error
    #endif
    int main() { return 0; }" MARGIN_X86_64)
  if(MARGIN_X86_64)
    check_cxx_compiler_flag(-march=x86-64-v3 MARGIN_MARCH_V3)
    check_cxx_compiler_flag("-march=x86-64-v4 -mprefer-vector-width=512" MARGIN_MARCH_V4)
    if(MARGIN_MARCH_V3)
      add_row_kernels(avx2 -march=x86-64-v3)
      target_compile_definitions(margin_ext_cpu PRIVATE MARGIN_HAVE_AVX2)
    endif()
    if(MARGIN_MARCH_V4)
      add_row_kernels(avx512 -march=x86-64-v4 -mprefer-vector-width=512)
      target_compile_definitions(margin_ext_cpu PRIVATE MARGIN_HAVE_AVX512)
    endif()
  endif()
endif()

install(TARGETS margin_ext_cpu LIBRARY DESTINATION .)
