// Results of evaluations, kept in the run that they judge.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "apps/command.h"

namespace csml {

inline constexpr const char* kResultsFolder = "eval";  // in a run folder

/// Standard error of an accuracy of `percent` on n test images, in points: 100 sqrt(p (1 - p) / n). 0 without images.
double accuracy_error(double percent, int64_t n);

/// Answers with an evaluation's result, to which it adds version, date and standard_error (of top1 on n_test images).
/// Where result["checkpoint"] lies in a run folder, keeps it there as eval/TASK-HASH.json, where the hash is of what was
/// asked (checkpoint, data sets, protocol): the same evaluation again replaces its file, another one has its own.
/// --no-keep keeps nothing; a folder that cannot be written to is a warning.
void answer_result(const CommonOptions& options, nlohmann::json result, const std::string& text);

}  // namespace csml
