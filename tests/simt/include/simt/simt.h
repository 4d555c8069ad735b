// An emulator of the CUDA execution model: the one header that a kernel file includes in place of
// the CUDA headers when g++ compiles it for the CPU. README.md beside the include folder says how.
#pragma once

#include "simt/async_copy.h"
#include "simt/cooperative_groups.h"
#include "simt/cuda_types.h"
#include "simt/device.h"
#include "simt/launch.h"
#include "simt/runtime.h"
#include "simt/schedule.h"
#include "simt/shared_memory.h"
#include "simt/warp.h"
