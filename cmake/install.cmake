# What cmake --install puts under a prefix. Component program: the binary and its presets; component library: headers
# (under include/csml-MAJOR.MINOR, so that two versions live side by side), static libraries, and what find_package(csml)
# reads.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(CSML_APPS)
  set_target_properties(csml PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)  # MPI in a folder that only its wrapper knows
  install(TARGETS csml RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
  install(DIRECTORY configs/ DESTINATION share/csml/configs COMPONENT program FILES_MATCHING PATTERN "*.toml")
endif()
install(FILES LICENSE DESTINATION share/doc/csml COMPONENT program)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/csml)
list(TRANSFORM CSML_LIBRARIES PREPEND csml_ OUTPUT_VARIABLE exported)
if(CSML_CUDA)
  list(APPEND exported csml_kernels_cuda)
  set_target_properties(csml_kernels_cuda PROPERTIES EXPORT_NAME kernels_cuda)
endif()
install(TARGETS csml_base csml_all ${exported} EXPORT csml
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library)
install(EXPORT csml NAMESPACE csml:: FILE csmlTargets.cmake DESTINATION ${package_folder} COMPONENT library)
foreach(folder kernels engine models data csml)
  install(DIRECTORY ${folder} DESTINATION ${CSML_INCLUDE_FOLDER} COMPONENT library
          FILES_MATCHING PATTERN "*.h" PATTERN kernels/cpu EXCLUDE PATTERN kernels/cuda EXCLUDE)
endforeach()

# Before 1.0 a minor version may change interfaces: 0.2.x serves who asks for 0.2.
configure_package_config_file(cmake/csmlConfig.cmake.in csmlConfig.cmake INSTALL_DESTINATION ${package_folder}
                              NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(csmlConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/csmlConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/csmlConfigVersion.cmake
              cmake/modules/FindOneDNN.cmake cmake/modules/FindLibLinear.cmake
        DESTINATION ${package_folder} COMPONENT library)
