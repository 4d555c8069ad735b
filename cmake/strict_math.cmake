# NaN, infinities, subnormals and the order of sums are part of what the ops promise, so fast-math
# flags that come with CXXFLAGS, LDFLAGS, CUDAFLAGS or CMAKE_ARGS are left out, with a message. They
# have to go from the link too: some compilers link code into a library that turns subnormals off in
# the whole process that loads it.
include(CheckCXXSourceCompiles)

string(CONCAT MARGIN_FAST_MATH_FLAGS
       "-ffast-math|-funsafe-math-optimizations|-ffinite-math-only|-fassociative-math"
       "|-freciprocal-math|-fno-signed-zeros|-fno-honor-(nans|infinities)|-fapprox-func"
       "|-ffp-model=(fast|aggressive)|-mdaz-ftz|-fdenormal-fp-math=[a-z,-]+"
       "|--?use_fast_math|--?ftz=true|--?prec-(div|sqrt)=false")

# Take fast-math flags out of the variables that are named; -Ofast is -O3 with fast math.
function(margin_drop_fast_math)
  foreach(variable IN LISTS ARGN)
    # The blanks let one pattern find whole words; two passes, because neighbours share a blank.
    set(flags " ${${variable}} ")
    foreach(pass RANGE 1)
      string(REGEX REPLACE " (-Xcompiler[= ])?(${MARGIN_FAST_MATH_FLAGS}) " " " flags "${flags}")
      string(REGEX REPLACE " (-Xcompiler[= ])?-Ofast " " \\1-O3 " flags "${flags}")
    endforeach()
    string(STRIP "${flags}" flags)
    string(STRIP "${${variable}}" given)
    if(NOT flags STREQUAL given)
      message(WARNING "margin_ext is built without fast math, whose results are not the promised "
                      "ones: ${variable} '${given}' is used as '${flags}'")
      set(${variable} "${flags}" PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

margin_drop_fast_math(CMAKE_CXX_FLAGS CMAKE_CXX_FLAGS_RELEASE CMAKE_SHARED_LINKER_FLAGS
                      CMAKE_SHARED_LINKER_FLAGS_RELEASE)

# What cannot be seen in the flags, such as a compiler that is a script, the compiler itself tells.
check_cxx_source_compiles("
  #if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
  #error
  #endif
  int main() { return 0; }" MARGIN_STRICT_MATH)
if(NOT MARGIN_STRICT_MATH)
  message(FATAL_ERROR "margin_ext cannot be built with fast math, in which NaN and infinities do "
                      "not count, and ${CMAKE_CXX_COMPILER} is in that mode: set CXX to a compiler "
                      "that is not, or leave its option out.")
endif()
