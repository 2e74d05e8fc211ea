// Text that others wrote (names of files, arrays and keys, values, arguments), made fit for a terminal and a message.
#pragma once

#include <string>
#include <string_view>

namespace csml {

/// `text` without what steers a terminal: control characters (C0, DEL, C1), marks that turn the direction of writing,
/// and bytes that are no UTF-8 become \n, \t, \r or \xNN. Past `most` bytes it is cut, at a whole character, with "…".
/// `lines`: newlines stay, for text of several lines.
std::string printable(std::string_view text, size_t most = std::string_view::npos, bool lines = false);

/// One name or value inside a message: 'text', printable, of at most 200 bytes.
std::string quote(std::string_view text);

}  // namespace csml
