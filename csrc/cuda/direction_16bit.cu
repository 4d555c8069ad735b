#include "cuda/direction_launch.h"

namespace margin::cuda {

template cudaError_t launch_direction<__half>(const DirectionArguments&, const LaunchOptions&,
                                              cudaStream_t);
template cudaError_t launch_direction<__nv_bfloat16>(const DirectionArguments&,
                                                     const LaunchOptions&, cudaStream_t);

}  // namespace margin::cuda
