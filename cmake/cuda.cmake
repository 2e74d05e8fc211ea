# WITH_CUDA: finds CUDA's compiler, cuDNN and cuBLASLt, and enables the language CUDA.
# Sets CSML_CUDA (whether the CUDA backend is built) and STATUS_CUDA (a line for the feature table).
#
# cuDNN and cuBLASLt are loaded when a card is first used, the runtime is linked statically: the built csml starts on
# machines without driver or libraries. Only headers are needed here.
set(CSML_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING
    "Cards to compile for, as CMAKE_CUDA_ARCHITECTURES: A100 (and 8.6, 8.9), H100 and H200, newer ones through PTX")
set(CSML_CUDA OFF)

if(WITH_CUDA STREQUAL "OFF")
  set(STATUS_CUDA "not built: switched off")
else()
  set(why "")
  set(deps ${PROJECT_SOURCE_DIR}/.deps/cuda/nvidia)  # where scripts/setup.sh --cuda puts it
  find_program(CSML_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS /usr/local/cuda/bin ${deps}/cu13/bin)
  if(NOT CSML_NVCC)
    set(why "no nvcc (in CUDA_HOME/bin, PATH, /usr/local/cuda/bin or .deps/cuda)")
  else()
    get_filename_component(cuda_root ${CSML_NVCC} REALPATH)
    get_filename_component(cuda_root ${cuda_root} DIRECTORY)
    get_filename_component(cuda_root ${cuda_root} DIRECTORY)
    find_path(CUBLASLT_INCLUDE cublasLt.h HINTS ${cuda_root}/include ${cuda_root}/targets/x86_64-linux/include)
    find_path(CUDNN_INCLUDE cudnn.h
              HINTS ${CUDNN_ROOT} $ENV{CUDNN_ROOT} $ENV{CUDNN_PATH} ${cuda_root} ${cuda_root}/../cudnn
              PATH_SUFFIXES include include/${CMAKE_LIBRARY_ARCHITECTURE})
    if(NOT CUBLASLT_INCLUDE)
      set(why "no cublasLt.h in ${cuda_root} (package libcublas-dev)")
    elseif(NOT CUDNN_INCLUDE)
      set(why "no cudnn.h (package cudnn9-cuda; or set CUDNN_ROOT)")
    else()
      file(STRINGS ${CUDNN_INCLUDE}/cudnn_version.h lines REGEX "define CUDNN_(MAJOR|MINOR|PATCHLEVEL) +[0-9]+")
      string(REGEX REPLACE "[^0-9;]" "" lines "${lines}")
      list(JOIN lines "." CUDNN_VERSION)
      if(CUDNN_VERSION VERSION_LESS 9.8)
        set(why "cuDNN ${CUDNN_VERSION} in ${CUDNN_INCLUDE} is too old, 9.8 is needed")
      endif()
    endif()
  endif()

  if(NOT why)
    if(NOT DEFINED CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER ${CSML_NVCC})
    endif()
    if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER)
      set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
    endif()
    set(CMAKE_CUDA_ARCHITECTURES ${CSML_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -lineinfo -DNDEBUG")
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know nvcc's C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    # The report on registers, memory and spills goes beside the object, for tests/kernel_resources.py.
    string(APPEND CMAKE_CUDA_FLAGS " -Xptxas -v")
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${PROJECT_SOURCE_DIR}/cmake/ptxas_report.sh)
    if(CCACHE)
      list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    find_package(CUDAToolkit REQUIRED)
    if(CUDAToolkit_VERSION VERSION_LESS 12.0)
      set(why "CUDA ${CUDAToolkit_VERSION} is too old, 12.0 is needed")
    endif()
  endif()

  if(NOT why)
    set(CSML_CUDA ON)
    # Where the libraries are, for machines whose dynamic linker does not know.
    string(REGEX MATCH "^[0-9]+" CUDNN_VERSION_MAJOR ${CUDNN_VERSION})
    find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.${CUDNN_VERSION_MAJOR} NAMES_PER_DIR
                 HINTS ${CUDNN_INCLUDE}/.. PATH_SUFFIXES lib64 lib lib/${CMAKE_LIBRARY_ARCHITECTURE})
    find_library(CUBLASLT_LIBRARY NAMES cublasLt libcublasLt.so.${CUDAToolkit_VERSION_MAJOR} NAMES_PER_DIR
                 HINTS ${CUBLASLT_INCLUDE}/.. PATH_SUFFIXES lib64 lib lib/${CMAKE_LIBRARY_ARCHITECTURE})
    set(CSML_CUDA_LIBRARY_FOLDERS "")
    foreach(library CUDNN_LIBRARY CUBLASLT_LIBRARY)
      if(${library})
        get_filename_component(folder ${${library}} DIRECTORY)
        list(APPEND CSML_CUDA_LIBRARY_FOLDERS ${folder})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES CSML_CUDA_LIBRARY_FOLDERS)
    list(JOIN CSML_CUDA_LIBRARY_FOLDERS ":" CSML_CUDA_LIBRARY_FOLDERS)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
    set(STATUS_CUDA "CUDA ${CUDAToolkit_VERSION}, cuDNN ${CUDNN_VERSION}, for ${architectures}")
  elseif(WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "WITH_CUDA=ON: ${why}. scripts/setup.sh --cuda installs what is missing; "
                        "or configure with WITH_CUDA=OFF")
  else()
    set(STATUS_CUDA "not built: ${why}")
  endif()
endif()
