#include "engine/text.h"

#include "kernels/check.h"

namespace csml {

namespace {

unsigned char byte_at(std::string_view text, size_t at) {
  return at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
}

/// Bytes of the UTF-8 character at `at` (RFC 3629: shortest form, no surrogates, at most U+10FFFF); 0: there is none.
size_t character_bytes(std::string_view text, size_t at) {
  const unsigned char first = byte_at(text, at), second = byte_at(text, at + 1);
  if (first < 0x80) return 1;
  const size_t bytes = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  for (size_t i = 1; i < bytes; ++i)
    if ((byte_at(text, at + i) & 0xC0) != 0x80) return 0;
  const bool wrong = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                     (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return wrong ? 0 : bytes;
}

bool steers(std::string_view character) {
  const unsigned char a = byte_at(character, 0), b = byte_at(character, 1), c = byte_at(character, 2);
  if (a < 0x20 || a == 0x7F) return true;
  if (a == 0xC2 && b < 0xA0) return true;                             // C1
  if (a == 0xE2 && b == 0x80 && c >= 0xA8 && c <= 0xAE) return true;  // separators of lines, directions
  return a == 0xE2 && b == 0x81 && c >= 0xA6 && c <= 0xA9;            // isolated directions
}

}  // namespace

std::string printable(std::string_view text, size_t most, bool lines) {
  std::string shown;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = character_bytes(text, at);
    const std::string_view character = text.substr(at, bytes == 0 ? 1 : bytes);
    std::string next(character);
    if (!(lines && character == "\n") && (bytes == 0 || steers(character))) {
      next.clear();
      for (const char c : character)
        next += c == '\n'   ? "\\n"
                : c == '\t' ? "\\t"
                : c == '\r' ? "\\r"
                            : cat("\\x{:02X}", static_cast<unsigned char>(c));
    }
    if (next.size() > most || shown.size() > most - next.size()) return shown + "…";
    shown += next;
    at += character.size();
  }
  return shown;
}

std::string quote(std::string_view text) { return "'" + printable(text, 200) + "'"; }

}  // namespace csml
