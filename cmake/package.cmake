# A binary that travels (CSML_PACKAGE=ON, scripts/package.sh): bin/csml and beside it lib/ with every library that it needs
# but glibc's own. What computes is one shared library, libcsml_core.so, made from the same sources for several instruction
# sets; the dynamic linker takes the best one that the processor has (glibc-hwcaps, glibc 2.33 and newer):
#   lib/libcsml_core.so                               any x86-64
#   lib/glibc-hwcaps/x86-64-v3/libcsml_core.so        AVX2, FMA
#   lib/glibc-hwcaps/x86-64-v4/libcsml_core.so        AVX-512
# oneDNN chooses its own kernels at run time.
if(CSML_NATIVE OR CSML_SANITIZE OR NOT CSML_APPS)
  message(FATAL_ERROR "CSML_PACKAGE=ON needs CSML_NATIVE=OFF, CSML_SANITIZE=OFF and CSML_APPS=ON (scripts/package.sh)")
endif()
if(CSML_MPI)
  message(FATAL_ERROR "CSML_PACKAGE=ON needs WITH_MPI=OFF: an MPI library does not travel, it belongs to its machine")
endif()

# csml_core(name kernels data folder): the libraries up to data/ as one shared library, whole.
function(csml_core name kernels data folder)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/core.cpp CONTENT "")  # a library needs a source
  add_library(${name} SHARED ${PROJECT_BINARY_DIR}/generated/core.cpp)
  set_target_properties(${name} PROPERTIES OUTPUT_NAME csml_core
                        LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/${folder})
  # By file: as targets they would bring the kernels for any x86-64 along, which csml_engine needs elsewhere.
  set(archives "")
  foreach(library ${kernels} csml_engine ${data})
    list(APPEND archives $<TARGET_FILE:${library}>)
    add_dependencies(${name} ${library})
  endforeach()
  target_link_libraries(${name} PRIVATE -Wl,--whole-archive ${archives} -Wl,--no-whole-archive
                        OpenMP::OpenMP_CXX OneDNN::OneDNN JPEG::JPEG ${FORMAT_LIBRARIES} ZLIB::ZLIB fmt::fmt Threads::Threads
                        ${CMAKE_DL_LIBS})
  if(CSML_CUDA)
    target_link_libraries(${name} PRIVATE csml_kernels_cuda)
  endif()
  install(TARGETS ${name} RUNTIME_DEPENDENCY_SET csml_needs LIBRARY DESTINATION ${folder} COMPONENT program)
endfunction()

csml_core(csml_core csml_kernels csml_data lib)
foreach(level x86-64-v3 x86-64-v4)
  csml_kernels_library(csml_kernels_${level} -march=${level})
  csml_data_library(csml_data_${level} -march=${level})
  csml_core(csml_core_${level} csml_kernels_${level} csml_data_${level} lib/glibc-hwcaps/${level})
  add_dependencies(csml csml_core_${level})
endforeach()

# Before the archives on the linker's line: what the shared library has is not taken from them.
set_property(TARGET csml PROPERTY LINK_LIBRARIES csml_core csml_apps csml_common)
# RPATH, not RUNPATH: it also serves the libraries that the bundled ones need. In the build folder it is the same.
set_target_properties(csml PROPERTIES INSTALL_RPATH "$ORIGIN/../lib" BUILD_WITH_INSTALL_RPATH ON
                      RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
target_link_options(csml PRIVATE LINKER:--disable-new-dtags)

install(TARGETS csml RUNTIME_DEPENDENCY_SET csml_needs RUNTIME DESTINATION bin COMPONENT program)
install(RUNTIME_DEPENDENCY_SET csml_needs
        PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread)\\.so" "^libcsml_core"
        LIBRARY DESTINATION lib COMPONENT program)
install(DIRECTORY configs/ DESTINATION share/csml/configs COMPONENT program FILES_MATCHING PATTERN "*.toml")
install(FILES LICENSE DESTINATION share/doc/csml COMPONENT program)

# As a Debian package everything lies in /opt/csml, and /usr/bin/csml leads there ($ORIGIN is where a link leads).
install(CODE [[
  if(CMAKE_INSTALL_PREFIX MATCHES "/opt/csml$")
    file(MAKE_DIRECTORY "${CMAKE_INSTALL_PREFIX}/../../usr/bin")
    file(CREATE_LINK /opt/csml/bin/csml "${CMAKE_INSTALL_PREFIX}/../../usr/bin/csml" SYMBOLIC)
  endif()]] COMPONENT program)
set(CPACK_PACKAGE_NAME csml)
set(CPACK_PACKAGE_CONTACT "csml")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_COMPONENTS_ALL program)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
set(CPACK_ARCHIVE_COMPONENT_INSTALL ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_FILE_NAME csml-${PROJECT_VERSION}-linux-x86_64)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= 2.36)")  # Debian 12's, where scripts/package.sh is to be run
set(CPACK_DEBIAN_PACKAGE_SECTION science)
include(CPack)
