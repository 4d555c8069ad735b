// The ticket counters of the batch reduction (totals.h): an array in the module that is zero from
// the start and that every launch leaves at zero, one counter a launch.
//
// Two launches may use one counter as long as they do not overlap in time. Eager launches take
// turns: launches on one stream follow each other, and a device runs at most 128 kernels at a time,
// so that counter is free again long before its turn. (Only a launch that is still held back on its
// stream while kEager later ones start on others, and that then starts during the very last of
// these, could meet it.) A captured launch keeps its counter, because its graph may be replayed at
// any time: the first kCaptured captured launches of a process never share one with any other
// launch; later ones start again from the beginning of that range. As CUDA itself has it, one graph
// must not run twice at the same time: both runs would write the same outputs.
#pragma once

#include "cuda/constants.h"
#include "cuda/platform.h"

namespace margin::cuda {

// One array for every object file whose kernels draw tickets; a number from next_ticket()
// (device.h) is good for any of them.
static __device__ unsigned tickets[kEagerTickets + kCapturedTickets];

}  // namespace margin::cuda
