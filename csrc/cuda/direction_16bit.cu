#include "cuda/direction_launch.h"

namespace margin::cuda {

template cudaError_t launch_direction<SixteenBit>(const DirectionArguments&, const LaunchOptions&,
                                                  cudaStream_t);

}  // namespace margin::cuda
