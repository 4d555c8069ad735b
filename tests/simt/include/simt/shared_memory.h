// How a kernel declares shared memory. For nvcc the two macros are ordinary __shared__ variables.
#pragma once

#include "simt/machine.h"

// `T name[count]`, one per block. The lambda's type is a name for the declaration: unique to the
// line and, within a template, to the instance.
#define SIMT_SHARED(T, name, count) T(&name)[count] = ::simt::static_shared<T, (count)>([] {})

// `T* name`: the dynamic shared memory of the launch, aligned to 16 bytes.
#define SIMT_DYN_SHARED(T, name) \
  T* name = reinterpret_cast<T*>(::simt::machine.current->block->shared.dynamic())

namespace [[gnu::visibility("hidden")]] simt {

inline std::byte* static_shared_at(const void* site, std::size_t bytes, std::size_t alignment) {
  const auto& array = machine.statics.find(site, bytes, alignment);
  if (machine.statics.used > StaticLayout::kLimit) fail("more than 48 KB of static shared memory");
  // It is there in every block of the cluster from the block's start on, whether or not the block
  // has come to the declaration: others may write to it.
  Block& own = *machine.current->block;
  for (Block& block : own.cluster->blocks) {
    if (block.started && block.live > 0) block.shared.static_array(array);
  }
  return own.shared.static_array(array);
}

template <class T, std::size_t count, class Site>
T (&static_shared(Site))
[count] {
  static char site;
  return *reinterpret_cast<T(*)[count]>(static_shared_at(&site, sizeof(T[count]), alignof(T)));
}

}  // namespace simt
