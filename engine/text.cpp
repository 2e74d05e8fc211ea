#include "engine/text.h"

#include "kernels/check.h"

namespace csml {

std::string printable(std::string_view text) {
  constexpr size_t kMost = 200;
  const bool cut = text.size() > kMost;
  if (cut) {
    text = text.substr(0, kMost);
    const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };
    while (!text.empty() && continues(text.back())) text.remove_suffix(1);
    if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0xC0) text.remove_suffix(1);
  }
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02X}", byte);
    } else if (byte == 0xC2 && next >= 0x80 && next < 0xA0) {  // the control characters U+0080 to U+009F
      out += fmt::format("\\x{:02X}", next);
      ++i;
    } else {
      out += text[i];
    }
  }
  return cut ? out + "…" : out;
}

}  // namespace csml
