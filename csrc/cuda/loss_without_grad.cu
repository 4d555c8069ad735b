#include "cuda/loss_launch.h"

namespace margin::cuda {

template cudaError_t launch_gap_loss<float>(const LossArguments&, void*, const LaunchOptions&,
                                            cudaStream_t);
template cudaError_t launch_gap_loss<double>(const LossArguments&, void*, const LaunchOptions&,
                                             cudaStream_t);

}  // namespace margin::cuda
