// Shell completion for bash and zsh, made from the table of subcommands and flags.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace csml {

/// A script for `shell` ("bash" or "zsh"): subcommands, their flags, else files. Throws UsageError for another shell.
std::string completion_script(const CLI::App& app, const std::string& shell);

}  // namespace csml
