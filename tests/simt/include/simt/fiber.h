// One CUDA thread runs as one fiber: a stack of its own, entered and left by switching the stack
// pointer. All fibers run on the operating system thread that launched the kernel.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(SIMT_USE_UCONTEXT)

// Saves what the ABI asks a callee to keep, exchanges stacks, and goes on where the other fiber
// stopped. The jump instead of a return spares the processor a mispredicted return address.
asm(R"(
  .text
  .weak simt_switch_stack
  .hidden simt_switch_stack
  .type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
  .size simt_switch_stack, . - simt_switch_stack
)");
extern "C" [[gnu::visibility("hidden")]] void simt_switch_stack(void** from, void* const* to);

namespace [[gnu::visibility("hidden")]] simt {
using Context = void*;  // the saved stack pointer; everything else lies on the stack

inline void switch_context(Context& from, Context& to) { simt_switch_stack(&from, &to); }

inline void prepare_context(Context& context, std::byte* stack, std::size_t size, void (*entry)()) {
  // From the top: a null return address, the entry, six registers. The entry then starts with the
  // stack pointer 8 beyond a multiple of 16, as after a call.
  auto** top = reinterpret_cast<void**>(stack + size) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  context = top;
}
}  // namespace simt

#else  // any other processor

#include <ucontext.h>

namespace [[gnu::visibility("hidden")]] simt {
using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare_context(Context& context, std::byte* stack, std::size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
}  // namespace simt

#endif

namespace [[gnu::visibility("hidden")]] simt {

// AddressSanitizer must be told of every switch, before and after it, or it takes the stack of
// another fiber for an overflow. In a plain build these do nothing.
inline void announce_switch([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack,
                            [[maybe_unused]] std::size_t size) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(keep, stack, size);
#endif
}
inline void confirm_switch([[maybe_unused]] void* kept, [[maybe_unused]] const void** stack,
                           [[maybe_unused]] std::size_t* size) {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(kept, stack, size);
#endif
}

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (stack_ == nullptr) return;
    forget_frames();
    munmap(stack_ - kGuard, kStack + kGuard);
  }

  // Makes the next resume() call `entry`, whatever this fiber did before.
  void start(void (*entry)()) {
    if (stack_ == nullptr) allocate();
    forget_frames();
    prepare_context(context_, stack_, kStack, entry);
  }

  // Called by the scheduler: runs the fiber until it suspends or finishes.
  void resume() {
    void* kept = nullptr;
    announce_switch(&kept, stack_, kStack);
    switch_context(scheduler_, context_);
    confirm_switch(kept, nullptr, nullptr);
  }

  // First statement of the entry, on the fiber.
  void entered() { confirm_switch(nullptr, &scheduler_stack_, &scheduler_size_); }

  // Called on the fiber: returns to the scheduler, and from here when it is resumed.
  void suspend() {
    void* kept = nullptr;
    announce_switch(&kept, scheduler_stack_, scheduler_size_);
    switch_context(context_, scheduler_);
    confirm_switch(kept, &scheduler_stack_, &scheduler_size_);
  }

  // Last statement of the entry; does not return.
  void finish() {
    announce_switch(nullptr, scheduler_stack_, scheduler_size_);
    switch_context(context_, scheduler_);
  }

 private:
  static constexpr std::size_t kStack = 256 << 10;  // ample for -O0 frames with red zones
  static constexpr std::size_t kGuard = 4 << 10;    // an overflow faults instead of corrupting

  // Clears the marks of the last run: its outermost functions never returned.
  void forget_frames() {
#ifdef SIMT_ASAN
    __asan_unpoison_memory_region(stack_, kStack);
#endif
  }

  void allocate() {
    void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
    stack_ = static_cast<std::byte*>(memory) + kGuard;
  }

  std::byte* stack_ = nullptr;  // mapped on first use, kept until the fiber is destroyed
  Context context_{};
  Context scheduler_{};
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_size_ = 0;
};

}  // namespace simt
