# oneDNN by its files: Debian's package for CMake asks for OpenCL, which csml does not use.
# Gives OneDNN_FOUND, OneDNN_VERSION and the target OneDNN::OneDNN.
find_path(OneDNN_INCLUDE oneapi/dnnl/dnnl.hpp)
find_library(OneDNN_LIBRARY dnnl)
mark_as_advanced(OneDNN_INCLUDE OneDNN_LIBRARY)
if(OneDNN_INCLUDE)
  file(STRINGS ${OneDNN_INCLUDE}/oneapi/dnnl/dnnl_version.h version_lines
       REGEX "define DNNL_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" version_lines "${version_lines}")
  list(JOIN version_lines "." OneDNN_VERSION)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OneDNN REQUIRED_VARS OneDNN_LIBRARY OneDNN_INCLUDE VERSION_VAR OneDNN_VERSION)
if(OneDNN_FOUND AND NOT TARGET OneDNN::OneDNN)
  add_library(OneDNN::OneDNN UNKNOWN IMPORTED)
  set_target_properties(OneDNN::OneDNN PROPERTIES IMPORTED_LOCATION "${OneDNN_LIBRARY}"
                                                  INTERFACE_INCLUDE_DIRECTORIES "${OneDNN_INCLUDE}")
endif()
