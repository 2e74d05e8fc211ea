#include "kernels/cpu/call_log.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

namespace csml {

std::string CallLog::Call::name() const {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(type->name(), nullptr, nullptr, &status),
                                                         &std::free);
  const std::string full = text ? text.get() : type->name();
  return full.substr(full.rfind(':') + 1);
}

void CallLog::put(Call& call, const ConstView& view) {
  call.values.push_back({view.data, 0});
  put_member(call, view.shape.rank());
  for (int i = 0; i < view.shape.rank(); ++i) put_member(call, view.shape[i]);
  put_member(call, view.dtype);
}

void CallLog::put(Call& call, const ConstViews& views) {
  put_member(call, views.count);
  for (int i = 0; i < views.count; ++i) put(call, views[i]);
}

std::vector<size_t> CallLog::blocks() const {
  std::vector<size_t> sizes;
  for (const Block& block : blocks_) sizes.push_back(block.bytes);
  return sizes;
}

std::pair<size_t, uint64_t> CallLog::place(const void* pointer) const {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (size_t i = blocks_.size(); i-- > 0;) {  // newest first: an address may have been given back and taken again
    const auto begin = reinterpret_cast<uintptr_t>(blocks_[i].data);
    if (address >= begin && address < begin + blocks_[i].bytes) return {i + 1, address - begin};
  }
  return {0, address};
}

std::string difference(const CallLog& a, const CallLog& b) {
  const size_t common = std::min(a.calls_.size(), b.calls_.size());
  for (size_t i = 0; i < common; ++i) {
    const CallLog::Call &first = a.calls_[i], &second = b.calls_[i];
    if (*first.type != *second.type)
      return cat("call {} is {} in one and {} in the other", i, first.name(), second.name());
    for (size_t j = 0; j < std::min(first.values.size(), second.values.size()); ++j) {
      const CallLog::Value &x = first.values[j], &y = second.values[j];
      if (x.scalar != y.scalar) return cat("call {}, {}: number {} of its arguments differs", i, first.name(), j);
      if (a.place(x.pointer) != b.place(y.pointer))
        return cat("call {}, {}: number {} of its arguments, a pointer, differs", i, first.name(), j);
    }
    if (first.values.size() != second.values.size()) return cat("call {}, {}: shapes differ", i, first.name());
  }
  if (a.calls_.size() != b.calls_.size()) return cat("{} calls and {}", a.calls_.size(), b.calls_.size());
  if (a.blocks() != b.blocks()) return "the blocks of memory differ";
  return {};
}

}  // namespace csml
