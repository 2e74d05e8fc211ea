// Fiber: a stack of its own that runs until it yields. For one operating-system thread; known to AddressSanitizer.
#pragma once

#include <cstddef>

namespace csml::simt {

class Fiber {
 public:
  /// body runs on the fiber and must not return nor throw.
  explicit Fiber(void (*body)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// From outside any fiber: goes on with this one until it yields.
  void resume();
  /// From inside: back to who resumed it.
  static void yield();
  /// Forgets what the fiber was doing (objects on its stack are not destroyed); the next resume() starts body again.
  void reset();

 private:
  static void enter();

  void (*body_)();
  char* memory_ = nullptr;  // a guard page, then the stack
  char* stack_ = nullptr;
  void* saved_ = nullptr;       // where the fiber stands
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace csml::simt
