# Options that every translation unit of ours shares, on the host side.
add_library(margin_common INTERFACE)
target_include_directories(margin_common INTERFACE "${PROJECT_SOURCE_DIR}/csrc")

set(MARGIN_HOST_FLAGS
    -Wall -Wextra
    # A switch over an enumeration names every value: who adds one is told where it is missing.
    -Werror=switch
    # Error messages name files; they should not name the folder that somebody built in.
    "-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=")
foreach(flag IN LISTS MARGIN_HOST_FLAGS)
  target_compile_options(
    margin_common INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flag}>"
                            "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${flag}>")
endforeach()
