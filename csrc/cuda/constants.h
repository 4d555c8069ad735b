// Numbers that kernels and launchers must agree on.
#pragma once

namespace margin::cuda {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kMaxThreads = 256;  // of a block
inline constexpr unsigned kMaxWarps = kMaxThreads / kWarp;
inline constexpr unsigned kMaxCluster = 8;  // what every device with clusters must support
inline constexpr int kRegisterPacks = 8;    // of a row kept in registers, a thread

// Ticket counters for eager and for captured launches (tickets.h).
inline constexpr unsigned kEagerTickets = 1024;
inline constexpr unsigned kCapturedTickets = 15 * 1024;

}  // namespace margin::cuda
