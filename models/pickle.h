// Python pickle of named f32 arrays, as detectron2's checkpointer reads it. Written only: a pickle can run any code
// when it is read, so csml reads none.
#pragma once

#include <string>
#include <vector>

#include "engine/safetensors.h"

namespace csml {

/// {"model": {name: numpy.ndarray, …}, "__author__": author, "matching_heuristics": True} in protocol 3 (Python 3).
/// `matching_heuristics` lets detectron2 match names by their ends; without `__author__` it takes the file for one of
/// its own and loads no batch-norm statistics (facebookresearch/moco issue 45). Opcodes: Python's Lib/pickletools.py.
/// Throws Error for an array that is not f32 or larger than 4 GiB.
std::string detectron2_pickle(const std::vector<HostArray>& arrays, const std::string& author);

}  // namespace csml
