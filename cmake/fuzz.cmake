# Fuzz targets: tests/fuzz/<name>_fuzz.cpp, which hands bytes to one parser, with seeds in tests/fuzz/corpus/<name>.
# With CSML_FUZZ they are libFuzzer programs; in a sanitized build with tests, a driver replays the seeds and a fixed
# number of mutations of each as tests fuzz.<name>.

# csml_fuzz_target(name library [source...]): the library that the parser lies in.
function(csml_fuzz_target name library)
  set(program ${name}_fuzz)
  add_executable(${program} tests/fuzz/${program}.cpp ${ARGN})
  if(CSML_FUZZ)
    if(NOT name MATCHES "^(config|weights)$")  # these reach the whole method
      set(library csml_parsers)
    endif()
    target_link_options(${program} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${program} PROPERTIES EXCLUDE_FROM_ALL ON)
    add_dependencies(fuzzers ${program})
  else()
    target_sources(${program} PRIVATE tests/fuzz/replay.cpp)
    set(seeds ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
    set(mutations 400)
    if(name STREQUAL "config")  # a hundred times slower than the others: every key goes through the whole table
      list(APPEND seeds ${PROJECT_SOURCE_DIR}/configs)
      set(mutations 2)
    endif()
    add_test(NAME fuzz.${name} COMMAND ${program} --mutations=${mutations} ${seeds})
    set_tests_properties(fuzz.${name} PROPERTIES ENVIRONMENT "${TESTS_ENVIRONMENT}" TIMEOUT 300)
  endif()
  target_link_libraries(${program} PRIVATE ${library} JPEG::JPEG ZLIB::ZLIB)
endfunction()

if(CSML_FUZZ)
  string(REPLACE "-O0" "-O1" CMAKE_CXX_FLAGS_DEBUG "${CMAKE_CXX_FLAGS_DEBUG}")
  # toml++ from its headers, so that the fuzzer sees into it, rather than as the distribution's library.
  set_target_properties(tomlplusplus::tomlplusplus PROPERTIES INTERFACE_COMPILE_OPTIONS "")
  add_custom_target(fuzzers)
  # The sources of the parsers without what the folders' libraries hold besides: most fuzzers build in a minute or two.
  csml_library(csml_parsers
    apps/chart.cpp
    apps/run_metrics.cpp
    apps/verdict.cpp
    csml/evaluation/label_split.cpp
    data/baseline_jpeg.cpp
    data/braces.cpp
    data/cifar.cpp
    data/class_names.cpp
    data/dataset.cpp
    data/decode.cpp
    data/encoded.cpp
    data/exif.cpp
    data/file_dataset.cpp
    data/gzip.cpp
    data/idx.cpp
    data/image_folder.cpp
    data/image_list.cpp
    data/kinds.cpp
    data/memory_dataset.cpp
    data/pack.cpp
    data/pack_writer.cpp
    data/png_bmp.cpp
    data/pnm.cpp
    data/resize.cpp
    data/selection.cpp
    data/spec.cpp
    data/square.cpp
    data/stb_images.cpp
    data/stl10.cpp
    data/synthetic.cpp
    data/tar.cpp
    data/tar_images.cpp
    engine/checkpoint.cpp
    engine/file.cpp
    engine/nearest.cpp
    engine/safetensors.cpp
    engine/text.cpp
    ${FORMAT_SOURCES})
  target_compile_options(csml_parsers PRIVATE ${NATIVE_FLAGS})
  target_link_libraries(csml_parsers PUBLIC nlohmann_json::nlohmann_json PRIVATE csml_image_formats JPEG::JPEG ${FORMAT_LIBRARIES}
                        ZLIB::ZLIB csml_xxhash csml_stb)
endif()
if(CSML_FUZZ OR (CSML_SANITIZE AND CSML_TESTS))
  csml_fuzz_target(baseline_jpeg csml_data tests/fuzz/jpeg_reference.cpp)
  csml_fuzz_target(cifar csml_data)
  csml_fuzz_target(config csml_apps)
  csml_fuzz_target(idx csml_data)
  csml_fuzz_target(image csml_data)
  csml_fuzz_target(jpeg_coefficients csml_data tests/fuzz/jpeg_reference.cpp)
  csml_fuzz_target(label_split csml_evaluation)
  csml_fuzz_target(list csml_data)
  csml_fuzz_target(manifest csml_engine)
  csml_fuzz_target(metrics csml_apps)
  csml_fuzz_target(pack csml_data)
  csml_fuzz_target(safetensors csml_engine)
  csml_fuzz_target(spec csml_data)
  csml_fuzz_target(stl10 csml_data)
  csml_fuzz_target(tar csml_data)
  csml_fuzz_target(weights csml_training)

  add_executable(fuzz_corpus EXCLUDE_FROM_ALL tests/fuzz/make_corpus.cpp)  # writes the seeds, on request
  target_link_libraries(fuzz_corpus PRIVATE $<IF:$<BOOL:${CSML_FUZZ}>,csml_parsers,csml_data> JPEG::JPEG ZLIB::ZLIB)
endif()
