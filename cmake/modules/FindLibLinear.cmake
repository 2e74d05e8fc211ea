# liblinear, which has no package for CMake. Gives LibLinear_FOUND and the target LibLinear::LibLinear.
find_path(LibLinear_INCLUDE linear.h)
find_library(LibLinear_LIBRARY linear)
mark_as_advanced(LibLinear_INCLUDE LibLinear_LIBRARY)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibLinear REQUIRED_VARS LibLinear_LIBRARY LibLinear_INCLUDE)
if(LibLinear_FOUND AND NOT TARGET LibLinear::LibLinear)
  add_library(LibLinear::LibLinear UNKNOWN IMPORTED)
  set_target_properties(LibLinear::LibLinear PROPERTIES IMPORTED_LOCATION "${LibLinear_LIBRARY}"
                                                        INTERFACE_INCLUDE_DIRECTORIES "${LibLinear_INCLUDE}")
endif()
