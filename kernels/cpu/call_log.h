// CallLog: what a stretch of work asked of the CPU backend, call by call, so that two stretches can be compared. A step
// that bakes a changing value or pointer into a call makes two different logs; its replay would repeat the first one.
#pragma once

#include <bit>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace csml {

class CallLog {
 public:
  /// One number, extent, type or pointer of a call's arguments.
  struct Value {
    const void* pointer = nullptr;
    uint64_t scalar = 0;  // its bits
  };
  struct Call {
    const std::type_info* type;  // of the argument struct
    std::vector<Value> values;   // in the order of its members
    /// "Conv2d"
    std::string name() const;
  };

  template <class Args>
  void add(const Args& args);
  void allocated(const void* data, size_t bytes) { blocks_.push_back({data, bytes}); }

  const std::vector<Call>& calls() const { return calls_; }
  /// Bytes of each block that the work took from the backend, in order.
  std::vector<size_t> blocks() const;

  /// The first difference between two logs, in words; empty: none. Pointers are equal when they are the same address,
  /// or the same offset in the n-th block of either log: a recording brings memory of its own, but must ask for it
  /// alike.
  friend std::string difference(const CallLog& a, const CallLog& b);

 private:
  struct Block {
    const void* data;
    size_t bytes;
  };
  /// (number of the block, offset), or (0, address) outside all blocks.
  std::pair<size_t, uint64_t> place(const void* pointer) const;
  void put(Call& call, const ConstView& view);
  void put(Call& call, const ConstViews& views);
  template <class Member>
  void put_member(Call& call, const Member& member);

  std::vector<Call> calls_;
  std::vector<Block> blocks_;
};

std::string difference(const CallLog& a, const CallLog& b);

namespace call_log {

struct Anything {
  template <class T>
  operator T() const;
};

/// How many values T{…} takes: the members of an aggregate.
template <class T, class... Given>
consteval int member_count() {
  if constexpr (requires { T{Given{}..., Anything{}}; })
    return member_count<T, Given..., Anything>();
  else
    return sizeof...(Given);
}

/// f(member, member, …). Comparing raw bytes instead would compare the gaps between members too.
template <class T, class F>
void with_members(const T& t, F&& f) {
  constexpr int n = member_count<T>();
  static_assert(n >= 2 && n <= 20, "one more line below");
  // clang-format off
#define CSML_MEMBERS(count, ...) if constexpr (n == count) { const auto& [__VA_ARGS__] = t; f(__VA_ARGS__); }
  CSML_MEMBERS(2, a, b)
  CSML_MEMBERS(3, a, b, c)
  CSML_MEMBERS(4, a, b, c, d)
  CSML_MEMBERS(5, a, b, c, d, e)
  CSML_MEMBERS(6, a, b, c, d, e, g)
  CSML_MEMBERS(7, a, b, c, d, e, g, h)
  CSML_MEMBERS(8, a, b, c, d, e, g, h, i)
  CSML_MEMBERS(9, a, b, c, d, e, g, h, i, j)
  CSML_MEMBERS(10, a, b, c, d, e, g, h, i, j, k)
  CSML_MEMBERS(11, a, b, c, d, e, g, h, i, j, k, l)
  CSML_MEMBERS(12, a, b, c, d, e, g, h, i, j, k, l, m)
  CSML_MEMBERS(13, a, b, c, d, e, g, h, i, j, k, l, m, o)
  CSML_MEMBERS(14, a, b, c, d, e, g, h, i, j, k, l, m, o, p)
  CSML_MEMBERS(15, a, b, c, d, e, g, h, i, j, k, l, m, o, p, q)
  CSML_MEMBERS(16, a, b, c, d, e, g, h, i, j, k, l, m, o, p, q, r)
  CSML_MEMBERS(17, a, b, c, d, e, g, h, i, j, k, l, m, o, p, q, r, s)
  CSML_MEMBERS(18, a, b, c, d, e, g, h, i, j, k, l, m, o, p, q, r, s, u)
  CSML_MEMBERS(19, a, b, c, d, e, g, h, i, j, k, l, m, o, p, q, r, s, u, v)
  CSML_MEMBERS(20, a, b, c, d, e, g, h, i, j, k, l, m, o, p, q, r, s, u, v, w)
#undef CSML_MEMBERS
  // clang-format on
}

}  // namespace call_log

template <class Args>
void CallLog::add(const Args& args) {
  Call& call = calls_.emplace_back(Call{&typeid(Args), {}});
  call_log::with_members(args, [&](const auto&... member) { (put_member(call, member), ...); });
}

template <class Member>
void CallLog::put_member(Call& call, const Member& member) {
  if constexpr (std::is_same_v<Member, float>) {
    call.values.push_back({nullptr, std::bit_cast<uint32_t>(member)});
  } else if constexpr (std::is_integral_v<Member> || std::is_enum_v<Member>) {
    call.values.push_back({nullptr, static_cast<uint64_t>(member)});
  } else if constexpr (std::is_same_v<Member, std::array<float, 4>>) {
    for (float x : member) put_member(call, x);
  } else {
    put(call, member);  // a member of another kind does not compile: say here how to note it
  }
}

}  // namespace csml
