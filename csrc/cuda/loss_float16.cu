#include "cuda/loss_launch.h"

namespace margin::cuda {

template cudaError_t launch_loss<__half>(const LossArguments&, void*, const LaunchOptions&,
                                         cudaStream_t);

}  // namespace margin::cuda
