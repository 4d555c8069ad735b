// The shared memory of one block: static arrays, red zone, dynamic part, red zone.
//
// Outside the life of its block an arena must hold nothing but the poison pattern, and inside it
// so must the gaps between arrays. That is checked when the block ends, and AddressSanitizer, where
// it is on, stops at the very access. Poison is also what a kernel reads before it has written.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "simt/fiber.h"

namespace [[gnu::visibility("hidden")]] simt {

// Where each SIMT_SHARED declaration lies: the same offset in every block of a launch, so that an
// address translates from one block of a cluster to another.
struct StaticLayout {
  struct Array {
    const void* site;  // identifies the declaration
    std::size_t offset, bytes;
  };
  static constexpr std::size_t kLimit = 48 << 10;  // CUDA's limit for static arrays
  static constexpr std::size_t kGap = 32;

  std::vector<Array> arrays;
  std::size_t used = 0;  // bytes of arrays, without the gaps
  std::size_t end = kGap;

  const Array& find(const void* site, std::size_t bytes, std::size_t alignment) {
    for (const Array& array : arrays) {
      if (array.site == site) return array;
    }
    std::size_t offset = (end + alignment - 1) / alignment * alignment;
    // Never more aligned than asked for: a vector access to such an array must not work by luck.
    if (alignment < 16 && offset % (2 * alignment) == 0) offset += alignment;
    end = offset + bytes + kGap;
    used += bytes;
    arrays.push_back({site, offset, bytes});
    return arrays.back();
  }
};

class SharedArena {
 public:
  static constexpr std::size_t kStatic = 64 << 10;  // room for 48 KB and the gaps
  static constexpr std::size_t kRedZone = 1 << 10;
  static constexpr std::size_t kDynamic = kStatic + kRedZone + 16;  // aligned to 16, not to 32

  SharedArena() = default;
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;
  ~SharedArena() { unpoison(0, size_); }

  // Before the block starts: everything is poison and out of bounds.
  void reset(std::size_t dynamic_bytes, unsigned char poison) {
    const std::size_t size = kDynamic + dynamic_bytes + kRedZone;
    unpoison(0, size_);
    if (size > capacity_) {
      memory_.reset(new (std::align_val_t{128}) std::byte[size]);
      capacity_ = size;
    }
    size_ = size;
    dynamic_bytes_ = dynamic_bytes;
    poison_ = poison;
    std::memset(memory_.get(), poison_, size_);
    forbid(0, size_);
  }

  // Whether it is still as reset() and close() left it. If not, somebody wrote here before the
  // block started, or after it ended.
  bool undisturbed() {
    const bool clean = untouched(0, size_);
    forbid(0, size_);
    return clean;
  }

  // The block starts: it may use the dynamic part, and static arrays as they are declared.
  void open() { unpoison(kDynamic, dynamic_bytes_); }

  // The block has ended. False: somebody wrote outside the arrays.
  bool close(const StaticLayout& layout) {
    bool clean = true;
    std::size_t at = 0;
    for (const auto& array : layout.arrays) {  // in ascending order
      clean &= untouched(at, array.offset);
      at = array.offset + array.bytes;
    }
    clean &= untouched(at, kDynamic) && untouched(kDynamic + dynamic_bytes_, size_);
    unpoison(0, size_);  // an array that other blocks have declared, but not this one
    std::memset(memory_.get(), poison_, size_);
    forbid(0, size_);
    return clean;
  }

  std::byte* static_array(const StaticLayout::Array& array) {
    unpoison(array.offset, array.bytes);
    return memory_.get() + array.offset;
  }
  std::byte* dynamic() { return memory_.get() + kDynamic; }

  // Where `address`, in this arena, lies in another of the same layout; null if it is not in here.
  void* translate(void* address, const SharedArena& other) const {
    auto* at = static_cast<std::byte*>(address);
    if (at < memory_.get() || at >= memory_.get() + size_) return nullptr;
    return other.memory_.get() + (at - memory_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{128}); }
  };

  // Lifts the ban on the bytes it looks at.
  bool untouched(std::size_t begin, std::size_t end) {
    unpoison(begin, end - begin);
    const std::byte* bytes = memory_.get() + begin;
    return bytes[0] == std::byte{poison_} && std::memcmp(bytes, bytes + 1, end - begin - 1) == 0;
  }
  void forbid([[maybe_unused]] std::size_t begin, [[maybe_unused]] std::size_t bytes) {
#ifdef SIMT_ASAN
    __asan_poison_memory_region(memory_.get() + begin, bytes);
#endif
  }
  void unpoison([[maybe_unused]] std::size_t begin, [[maybe_unused]] std::size_t bytes) {
#ifdef SIMT_ASAN
    __asan_unpoison_memory_region(memory_.get() + begin, bytes);
#endif
  }

  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;  // in use by this launch
  std::size_t dynamic_bytes_ = 0;
  unsigned char poison_ = 0;
};

}  // namespace simt
