// CUDA's own types (vectors, halves, error codes, dim3, streams) and its qualifiers as a host
// compiler shall read them. The types are the real ones, so kernel and test agree on layout and
// alignment; the qualifiers become nothing, because every function runs on the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

// As an ordinary local array shared memory would be private to a thread, and wrong in silence.
#define __shared__ static_assert(false, "declare it with SIMT_SHARED or SIMT_DYN_SHARED");
