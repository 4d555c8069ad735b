// simt::launch, the counterpart of kernel<<<...>>>(...).
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdio>
#include <mutex>
#include <tuple>

#include "simt/runtime.h"
#include "simt/schedule.h"

namespace [[gnu::visibility("hidden")]] simt {

struct Config {
  dim3 grid;
  dim3 block;
  std::size_t dynamic_shared_bytes = 0;
  unsigned cluster_size = 1;      // blocks along x
  cudaStream_t stream = nullptr;  // a launch is over when launch() returns, on any stream
  const char* name = nullptr;     // for messages; by default the symbol, where it is visible
};

// What the hardware refuses, with its error codes.
inline cudaError_t check(const Config& config) {
  const dim3 g = config.grid, b = config.block;
  const std::size_t threads = std::size_t{b.x} * b.y * b.z;
  const bool grid_fits =
      g.x >= 1 && g.x <= 0x7fffffff && g.y >= 1 && g.y <= 65535 && g.z >= 1 && g.z <= 65535;
  if (!grid_fits || threads < 1 || threads > 1024 || b.z > 64) return cudaErrorInvalidConfiguration;
  if (config.dynamic_shared_bytes > static_cast<std::size_t>(device().dynamic_shared_limit)) {
    return cudaErrorInvalidValue;
  }
  const unsigned cluster = config.cluster_size;
  if (cluster < 1 || cluster > static_cast<unsigned>(device().cluster_limit) ||
      g.x % cluster != 0) {
    return cudaErrorInvalidClusterSize;
  }
  return cudaSuccess;
}

inline std::string symbol(const void* function) {
  Dl_info info{};
  if (dladdr(function, &info) == 0 || info.dli_saddr != function) return "(no name)";
  char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
  const std::string name = demangled != nullptr ? demangled : info.dli_sname;
  std::free(demangled);
  return name;
}

// A report of AddressSanitizer shows lines of source; this adds which thread was there.
inline void name_thread_in_reports() {
#ifdef SIMT_ASAN
  __asan_set_error_report_callback([](const char*) {
    if (machine.current == nullptr) return;
    std::fputs(text("simt: kernel ", machine.kernel, ", ", name(*machine.current), "\n").c_str(),
               stderr);
  });
#endif
}

// The last launch and its parameters as they lie in a device's constant memory. A model of the
// machine code of a kernel reads them. With `only`, launches are recorded and not executed.
struct Recording {
  bool only = false;
  int launches = 0;  // so far
  Config config;
  std::string parameters;
};
inline Recording& recording() {
  static Recording recording;
  return recording;
}

template <class Parameter>
void append_parameter(std::string& bytes, const Parameter& value) {
  bytes.resize((bytes.size() + alignof(Parameter) - 1) / alignof(Parameter) * alignof(Parameter));
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline void run(const Config& config) {
  const std::size_t cluster = config.cluster_size;
  const std::size_t blocks = std::size_t{config.grid.x} * config.grid.y * config.grid.z;
  const std::size_t threads = cluster * config.block.x * config.block.y * config.block.z;
  machine.schedule = settings().schedule;
  machine.random = 0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(machine.schedule + 1) | 1;
  machine.current = nullptr;
  machine.dynamic_bytes = config.dynamic_shared_bytes;
  machine.statics = {};
  blockDim = config.block;
  gridDim = config.grid;
  // Some clusters at a time, so that blocks interleave, but not more than some thousand stacks.
  const std::size_t places =
      machine.schedule < 2 ? 1 : std::clamp<std::size_t>(8192 / threads, 1, 4);
  furnish(std::min(places, blocks / cluster), cluster, config.block);
  run_grid(blocks, cluster);
  machine.current = nullptr;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Config& config, Arguments&&... arguments) {
  if (const cudaError_t error = check(config); error != cudaSuccess) return error;
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);

  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  ++recording().launches;
  recording().config = config;
  recording().parameters.clear();
  std::apply([](const auto&... values) { (append_parameter(recording().parameters, values), ...); },
             call.second);
  if (recording().only) return cudaSuccess;
  machine.body = [](const void* erased) {
    const auto& [function, values] = *static_cast<const Call*>(erased);
    std::apply(function, values);  // every thread gets copies, as on the device
  };
  machine.arguments = &call;
  machine.kernel = config.name ? config.name : symbol(reinterpret_cast<const void*>(kernel));
  name_thread_in_reports();
  run(config);
  return cudaSuccess;
}

}  // namespace simt
