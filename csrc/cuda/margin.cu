#include "cuda/margin_launch.h"

namespace margin::cuda {

template cudaError_t launch_margin<SixteenBit>(const MarginArguments&, const LaunchOptions&,
                                               cudaStream_t);
template cudaError_t launch_margin<float>(const MarginArguments&, const LaunchOptions&,
                                          cudaStream_t);
template cudaError_t launch_margin<double>(const MarginArguments&, const LaunchOptions&,
                                           cudaStream_t);

}  // namespace margin::cuda
