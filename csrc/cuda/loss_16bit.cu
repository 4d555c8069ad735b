#include "cuda/loss_launch.h"

namespace margin::cuda {

template cudaError_t launch_loss<SixteenBit>(const LossArguments&, void*, const LaunchOptions&,
                                             cudaStream_t);

}  // namespace margin::cuda
