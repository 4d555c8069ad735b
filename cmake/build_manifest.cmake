# build.json: what this build holds, readable where a library cannot be loaded at all.

# The number of the interface between the libraries and the Python package stands in the package.
file(STRINGS "${PROJECT_SOURCE_DIR}/margin_ext/_extension.py" interface_line
     REGEX "^INTERFACE_VERSION = [0-9]+")
string(REGEX MATCH "[0-9]+" MARGIN_INTERFACE_VERSION "${interface_line}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
                                       "${PROJECT_SOURCE_DIR}/margin_ext/_extension.py")

function(margin_json_list result)
  list(JOIN ARGN "\", \"" joined)
  if(ARGN)
    set(${result} "[\"${joined}\"]" PARENT_SCOPE)
  else()
    set(${result} "[]" PARENT_SCOPE)
  endif()
endfunction()

margin_json_list(instruction_sets_json ${MARGIN_INSTRUCTION_SETS})
set(compiler "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
if(MARGIN_CUDA_BUILT)
  margin_json_list(architectures_json ${CMAKE_CUDA_ARCHITECTURES})
  set(cuda_json "{\"architectures\": ${architectures_json}, \"nvcc\": \"${CMAKE_CUDA_COMPILER_VERSION}\"}")
else()
  set(cuda_json "{\"skipped\": \"${MARGIN_CUDA_SKIPPED}\"}")
endif()

file(CONFIGURE OUTPUT build.json @ONLY CONTENT [[{
  "interface": @MARGIN_INTERFACE_VERSION@,
  "version": "@MARGIN_EXT_VERSION@",
  "torch_headers": "@MARGIN_EXT_TORCH_VERSION@",
  "torch_target": "2.11",
  "cpu": {"instruction_sets": @instruction_sets_json@, "compiler": "@compiler@"},
  "cuda": @cuda_json@
}
]])
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/build.json" DESTINATION .)
