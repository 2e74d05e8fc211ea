#include "tests/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include "kernels/check.h"

#if defined(__SANITIZE_ADDRESS__)
#define CSML_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CSML_ASAN 1
#endif
#endif
#ifdef CSML_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace csml::simt {

namespace {

#ifdef CSML_ASAN
constexpr size_t kStackBytes = 256 * 1024;  // instrumented frames are several times larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

Fiber* current = nullptr;  // the running fiber
void* host_saved = nullptr;
void* host_fake_stack = nullptr;
const void* host_stack = nullptr;
size_t host_stack_bytes = 0;

// Leaving: the stack that is entered next. Arriving: what was kept when this stack was left, and which stack that was.
void leaving([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#ifdef CSML_ASAN
  __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}
void arriving([[maybe_unused]] void* fake, [[maybe_unused]] const void** from, [[maybe_unused]] size_t* bytes) {
#ifdef CSML_ASAN
  __sanitizer_finish_switch_fiber(fake, from, bytes);
#endif
}

}  // namespace

#ifdef __x86_64__

// csml_simt_switch(save, load): pushes what the System V ABI makes the callee keep, stores the stack pointer in *save,
// takes `load` as stack pointer and pops the same. swapcontext would enter the kernel for the signal mask every time.
extern "C" void csml_simt_switch(void** save, void* load);
asm(R"(
.text
.globl csml_simt_switch
.type csml_simt_switch,@function
csml_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size csml_simt_switch,.-csml_simt_switch
)");

namespace {

void* prepare(char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // where entry would return to: keeps the alignment of a called function, ends backtraces
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}
void switch_stack(void** save, void* load) { csml_simt_switch(save, load); }
void drop(void*) {}

}  // namespace

#else

namespace {

void* prepare(char* stack, void (*entry)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
void switch_stack(void** save, void* load) {
  if (!*save) *save = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}
void drop(void* saved) { delete static_cast<ucontext_t*>(saved); }

}  // namespace

#endif

Fiber::Fiber(void (*body)()) : body_(body) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED, "no memory for the stack of a fiber");
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, page, PROT_NONE);
  stack_ = memory_ + page;
  reset();
}

Fiber::~Fiber() {
  drop(saved_);
  munmap(memory_, static_cast<size_t>(stack_ - memory_) + kStackBytes);
}

void Fiber::reset() {
#ifdef CSML_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  drop(saved_);
  fake_stack_ = nullptr;
  saved_ = prepare(stack_, enter);
}

void Fiber::enter() {
  arriving(nullptr, &host_stack, &host_stack_bytes);
  current->body_();
}

void Fiber::resume() {
  current = this;
  leaving(&host_fake_stack, stack_, kStackBytes);
  switch_stack(&host_saved, saved_);
  arriving(host_fake_stack, nullptr, nullptr);
  current = nullptr;
}

void Fiber::yield() {
  Fiber* self = current;
  leaving(&self->fake_stack_, host_stack, host_stack_bytes);
  switch_stack(&self->saved_, host_saved);
  arriving(self->fake_stack_, &host_stack, &host_stack_bytes);
}

}  // namespace csml::simt
