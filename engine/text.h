// Text from outside for messages: what a file, an archive or a command line holds never reaches the terminal as a command.
#pragma once

#include <string>
#include <string_view>

namespace csml {

/// A name or a value from outside (a file's name, a suffix, a key): control characters as \xNN, longer ones than about
/// 200 bytes cut, never inside a UTF-8 sequence.
std::string printable(std::string_view text);

}  // namespace csml
