# Writes OUTPUT, a C++ file that holds every preset of FOLDER (configs/*.toml), so that the binary needs no other file.
file(GLOB presets ${FOLDER}/*.toml)
list(SORT presets)
set(entries "")
foreach(preset IN LISTS presets)
  get_filename_component(name ${preset} NAME_WE)
  file(READ ${preset} text)
  string(APPEND entries "    {\"${name}\", R\"preset(${text})preset\"},\n")
endforeach()
file(WRITE ${OUTPUT}.new "// Written by cmake/embed_presets.cmake from configs/*.toml.
#include \"apps/presets.h\"

namespace csml {

std::vector<Preset> presets() {
  return {
${entries}  };
}

}  // namespace csml
")
file(COPY_FILE ${OUTPUT}.new ${OUTPUT} ONLY_IF_DIFFERENT)
file(REMOVE ${OUTPUT}.new)
