#include "cuda/direction_launch.h"

namespace margin::cuda {

template cudaError_t launch_direction<float>(const DirectionArguments&, const LaunchOptions&,
                                             cudaStream_t);
template cudaError_t launch_direction<double>(const DirectionArguments&, const LaunchOptions&,
                                              cudaStream_t);

}  // namespace margin::cuda
