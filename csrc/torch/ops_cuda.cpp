// The ops on CUDA tensors: the device and stream of the call, scratch memory, and error messages.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <sstream>
#include <stdexcept>

#include "cuda/ops.h"
#include "torch/ops.h"

namespace {

using namespace margin;

// Whether the library holds no code for the device.
bool is_missing_code(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
         error == cudaErrorUnsupportedPtxVersion;
}

[[noreturn]] void fail(const char* op, cudaError_t error, const cuda::LaunchReport& report) {
  cudaGetLastError();  // clears it, so that no later call reports it
  std::ostringstream message;
  message << "margin_ext." << op << ": ";
  if (is_missing_code(error)) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    message << "the CUDA library was built for the architectures " << MARGIN_CUDA_ARCHITECTURES
            << ", and this GPU has compute capability " << major << "." << minor
            << ". Build it again with TORCH_CUDA_ARCH_LIST=" << major << "." << minor << ".";
  } else if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    message
        << "the CUDA library was built with CUDA " << CUDART_VERSION / 1000 << "."
        << CUDART_VERSION % 1000 / 10 << ", and this machine's driver supports CUDA "
        << driver / 1000 << "." << driver % 1000 / 10
        << ". Build it with the nvcc of torch's CUDA version (torch.version.cuda), or update the "
           "driver.";
  } else if (report.kernel[0] == '\0') {
    message
        << "nothing was launched: " << cudaGetErrorName(error) << ": " << cudaGetErrorString(error)
        << (error == cudaErrorInvalidValue
                ? ""
                : ". An earlier operation on this device may have failed; CUDA_LAUNCH_BLOCKING=1 "
                  "shows which.");
  } else {
    message << "kernel " << report.kernel << " (variant " << cuda::name_of(report.variant) << ", "
            << report.blocks << " blocks of " << report.threads << " threads in clusters of "
            << report.cluster_size << ", " << report.shared_bytes
            << " bytes of shared memory): " << cudaGetErrorName(error) << ": "
            << cudaGetErrorString(error);
  }
  throw std::runtime_error(message.str());
}

class CudaBackend {
 public:
  explicit CudaBackend(const torch::stable::Tensor& anchor)
      : anchor_(anchor), guard_(anchor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(anchor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Labels are on the device, and reading them would synchronise.
  void check_labels(const LogitRows&, int64_t) const {}

  void logit_gap(const LogitGapArguments& a) { launch("logit_gap", cuda::logit_gap, a); }
  void first_order_margin(const MarginArguments& a) {
    launch("first_order_margin", cuda::first_order_margin, a);
  }
  void dual_direction(const DirectionArguments& a) {
    launch("dual_direction", cuda::dual_direction, a);
  }
  void class_margins(const ClassMarginArguments& a) {
    launch("class_margins", cuda::class_margins, a);
  }
  void attack_step(const AttackArguments& a) { launch("attack_step", cuda::attack_step, a); }
  void scale(const ScaleArguments& a) { launch("scale_gradients_", cuda::scale, a); }

  void average_margin_loss(const LossArguments& a) {
    // Freed at once: the next user of this memory is on the same stream, after the kernel.
    torch::stable::Tensor partials;
    if (a.loss != nullptr || a.statistics != nullptr) {
      const size_t bytes = cuda::average_margin_loss_partials(a.batch);
      partials = binding::empty_vector(anchor_, torch::headeronly::ScalarType::Byte,
                                       static_cast<int64_t>(bytes));
    }
    void* const memory = partials.defined() ? partials.mutable_data_ptr() : nullptr;
    const auto op = [&](const LossArguments& arguments, const cuda::LaunchOptions& options,
                        cudaStream_t stream) {
      return cuda::average_margin_loss(arguments, memory, options, stream);
    };
    launch("average_margin_loss", op, a);
  }

 private:
  template <typename Op, typename Arguments>
  void launch(const char* name, const Op& op, const Arguments& arguments) {
    cuda::LaunchReport report;
    cuda::LaunchOptions options;
    options.report = &report;
    const cudaError_t error = op(arguments, options, stream_);
    if (error != cudaSuccess) fail(name, error, report);
  }

  torch::stable::Tensor anchor_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(margin_ext, CUDA, m) { MARGIN_REGISTER_OPS(m, CudaBackend); }
