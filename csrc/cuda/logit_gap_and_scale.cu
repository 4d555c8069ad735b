// The two small ops.
#include "cuda/launch.h"
#include "cuda/launchers.h"
#include "cuda/logit_gap_kernel.h"
#include "cuda/scale_kernel.h"

namespace margin::cuda {

template <typename Acc>
cudaError_t launch_logit_gap(const LogitGapArguments& arguments, const LaunchOptions& options,
                             cudaStream_t stream) {
  static ClusterMemory memory;
  if (arguments.batch == 0) return cudaSuccess;
  if (arguments.logits.classes > INT32_MAX) return cudaErrorInvalidValue;
  const KernelSet<LogitGapArguments> kernels{"logit_gap", logit_gap_kernel<Acc, WarpGroup>,
                                             logit_gap_kernel<Acc, BlockGroup>, nullptr, memory};
  SampleShape shape;
  shape.batch = arguments.batch;
  shape.classes = arguments.logits.classes;
  return launch_samples(kernels, arguments, shape, options, stream);
}

template <typename Acc>
cudaError_t launch_scale(const ScaleArguments& arguments, const LaunchOptions& options,
                         cudaStream_t stream) {
  int64_t packs = 0;
  for (const ScaleArguments::Block& block : arguments.blocks) {
    if (block.data != nullptr) packs += ceil_div(block.size * size_of(block.dtype), 16);
  }
  if (packs == 0) return cudaSuccess;
  int device = 0;
  DeviceTraits traits;
  const cudaError_t error = current_device(&device, &traits);
  if (error != cudaSuccess) return error;
  // One round of loads a thread, and no more blocks than can be resident.
  const int64_t resident = static_cast<int64_t>(traits.multiprocessors) *
                           (traits.threads_per_multiprocessor / static_cast<int>(kScaleThreads));
  const unsigned blocks = static_cast<unsigned>(
      std::min(ceil_div(packs, kScaleUnroll * static_cast<int64_t>(kScaleThreads)), resident));
  if (options.report != nullptr) {
    *options.report = {"scale_gradients", Regime::kBlock, 1, kScaleThreads, blocks, 0};
  }
  return simt::launch(
      scale_kernel<Acc>,
      simt::Config{dim3(blocks), dim3(kScaleThreads), 0, 1, stream, "scale_gradients"}, arguments);
}

template cudaError_t launch_logit_gap<float>(const LogitGapArguments&, const LaunchOptions&,
                                             cudaStream_t);
template cudaError_t launch_logit_gap<double>(const LogitGapArguments&, const LaunchOptions&,
                                              cudaStream_t);
template cudaError_t launch_scale<float>(const ScaleArguments&, const LaunchOptions&, cudaStream_t);
template cudaError_t launch_scale<double>(const ScaleArguments&, const LaunchOptions&,
                                          cudaStream_t);

}  // namespace margin::cuda
