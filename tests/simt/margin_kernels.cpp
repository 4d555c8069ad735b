// Python bindings of csrc/cuda as the emulator executes it: the ops with their argument structs,
// the settings of device and schedule, and the policy. Addresses are plain integers.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>

#include "cuda/ops.h"
#include "cuda/policy.h"
#include "cuda/totals.h"

namespace py = pybind11;
using namespace margin;

namespace {

void succeed(cudaError_t error) {
  if (error != cudaSuccess) throw py::value_error("CUDA error " + std::to_string(int{error}));
}

template <typename Struct, typename Pointee>
void address(py::class_<Struct>& type, const char* name, Pointee* Struct::* field) {
  type.def_property(
      name, [field](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*field); },
      [field](Struct& s, uintptr_t value) { s.*field = reinterpret_cast<Pointee*>(value); });
}

template <typename Struct, typename Enum>
void number(py::class_<Struct>& type, const char* name, Enum Struct::* field) {
  type.def_property(
      name, [field](const Struct& s) { return static_cast<int>(s.*field); },
      [field](Struct& s, int value) { s.*field = static_cast<Enum>(value); });
}

void bind_parts(py::module_& m) {
  py::class_<NormOptions> norm(m, "NormOptions");
  norm.def_property(
      "q", [](const NormOptions& options) { return options.q; },
      [](NormOptions& options, double q) {
        if (q == 0) q = std::numeric_limits<double>::infinity();  // as the ops take it
        options = {norm_from_q(q), q};
      });

  py::class_<ChannelScale> channels(m, "ChannelScale");
  address(channels, "scale", &ChannelScale::scale);
  channels.def_readwrite("count", &ChannelScale::count);
  channels.def_readwrite("stride", &ChannelScale::stride);

  py::class_<GradientRows> grad(m, "GradientRows");
  address(grad, "data", &GradientRows::data);
  number(grad, "dtype", &GradientRows::dtype);
  grad.def_readwrite("batch_stride", &GradientRows::batch_stride);
  grad.def_readwrite("size", &GradientRows::size);
  grad.def_readwrite("channels", &GradientRows::channels);

  py::class_<LogitRows> logits(m, "LogitRows");
  address(logits, "data", &LogitRows::data);
  number(logits, "dtype", &LogitRows::dtype);
  logits.def_readwrite("batch_stride", &LogitRows::batch_stride);
  logits.def_readwrite("classes", &LogitRows::classes);
  address(logits, "target", &LogitRows::target);
  address(logits, "nearest", &LogitRows::nearest);
  logits.def_readwrite("ignore_index", &LogitRows::ignore_index);

  py::class_<ScaleArguments::Block> block(m, "ScaleBlock");
  address(block, "data", &ScaleArguments::Block::data);
  number(block, "dtype", &ScaleArguments::Block::dtype);
  block.def_readwrite("size", &ScaleArguments::Block::size);
}

void bind_arguments(py::module_& m) {
  py::class_<LogitGapArguments> gap(m, "LogitGapArguments");
  gap.def(py::init());
  gap.def_readwrite("batch", &LogitGapArguments::batch);
  gap.def_readwrite("logits", &LogitGapArguments::logits);
  address(gap, "gap", &LogitGapArguments::gap);
  address(gap, "runner_up", &LogitGapArguments::runner_up);

  py::class_<MarginArguments> margin(m, "MarginArguments");
  margin.def(py::init());
  margin.def_readwrite("batch", &MarginArguments::batch);
  margin.def_readwrite("norm", &MarginArguments::norm);
  margin.def_readwrite("eps", &MarginArguments::eps);
  margin.def_readwrite("grad", &MarginArguments::grad);
  address(margin, "gap", &MarginArguments::gap);
  address(margin, "margin", &MarginArguments::margin);
  address(margin, "norm_out", &MarginArguments::norm_out);

  py::class_<DirectionArguments> direction(m, "DirectionArguments");
  direction.def(py::init());
  direction.def_readwrite("batch", &DirectionArguments::batch);
  direction.def_readwrite("norm", &DirectionArguments::norm);
  direction.def_readwrite("grad", &DirectionArguments::grad);
  address(direction, "factor", &DirectionArguments::factor);
  address(direction, "base", &DirectionArguments::base);
  direction.def_readwrite("base_stride", &DirectionArguments::base_stride);
  address(direction, "out", &DirectionArguments::out);
  direction.def_readwrite("out_stride", &DirectionArguments::out_stride);

  py::class_<ClassMarginArguments> classes(m, "ClassMarginArguments");
  classes.def(py::init());
  classes.def_readwrite("batch", &ClassMarginArguments::batch);
  classes.def_readwrite("classes", &ClassMarginArguments::classes);
  classes.def_readwrite("norms", &ClassMarginArguments::norms);
  classes.def(
      "norm", [](ClassMarginArguments& a, int p) { return &a.norm[p]; },
      py::return_value_policy::reference_internal);
  classes.def_readwrite("grad", &ClassMarginArguments::grad);
  classes.def_readwrite("class_stride", &ClassMarginArguments::class_stride);
  address(classes, "gap", &ClassMarginArguments::gap);
  address(classes, "margin", &ClassMarginArguments::margin);
  address(classes, "norm_out", &ClassMarginArguments::norm_out);
  address(classes, "nearest", &ClassMarginArguments::nearest);

  py::class_<AttackArguments> attack(m, "AttackArguments");
  attack.def(py::init());
  attack.def_readwrite("batch", &AttackArguments::batch);
  attack.def_readwrite("norm", &AttackArguments::norm);
  attack.def_readwrite("grad", &AttackArguments::grad);
  attack.def_readwrite("steepest", &AttackArguments::steepest);
  address(attack, "x", &AttackArguments::x);
  attack.def_readwrite("x_stride", &AttackArguments::x_stride);
  address(attack, "center", &AttackArguments::center);
  attack.def_readwrite("center_stride", &AttackArguments::center_stride);
  address(attack, "length", &AttackArguments::length);
  address(attack, "radius", &AttackArguments::radius);
  attack.def_readwrite("low", &AttackArguments::low);
  attack.def_readwrite("high", &AttackArguments::high);
  address(attack, "out", &AttackArguments::out);
  attack.def_readwrite("out_stride", &AttackArguments::out_stride);

  py::class_<LossArguments> loss(m, "LossArguments");
  loss.def(py::init());
  loss.def_readwrite("batch", &LossArguments::batch);
  loss.def_readwrite("logits", &LossArguments::logits);
  loss.def_readwrite("grad", &LossArguments::grad);
  loss.def_readwrite("norm", &LossArguments::norm);
  loss.def_readwrite("eps", &LossArguments::eps);
  loss.def_readwrite("mu", &LossArguments::mu);
  number(loss, "regularizer", &LossArguments::regularizer);
  loss.def_readwrite("lo", &LossArguments::lo);
  loss.def_readwrite("hi", &LossArguments::hi);
  loss.def_readwrite("label_smoothing", &LossArguments::label_smoothing);
  address(loss, "class_weight", &LossArguments::class_weight);
  number(loss, "reduction", &LossArguments::reduction);
  address(loss, "loss", &LossArguments::loss);
  address(loss, "margin", &LossArguments::margin);
  address(loss, "gap", &LossArguments::gap);
  address(loss, "norm_out", &LossArguments::norm_out);
  address(loss, "statistics", &LossArguments::statistics);
  address(loss, "grad_logits", &LossArguments::grad_logits);
  address(loss, "grad_grad", &LossArguments::grad_grad);
  loss.def_readwrite("grad_grad_stride", &LossArguments::grad_grad_stride);
  address(loss, "upstream", &LossArguments::upstream);
  loss.def_readwrite("upstream_per_sample", &LossArguments::upstream_per_sample);

  py::class_<ScaleArguments> scale(m, "ScaleArguments");
  scale.def(py::init());
  // Valid as long as the ScaleArguments is.
  scale.def(
      "block", [](ScaleArguments& s, int i) { return &s.blocks[i]; },
      py::return_value_policy::reference_internal);
  address(scale, "upstream", &ScaleArguments::upstream);
  address(scale, "gradient_scale", &ScaleArguments::gradient_scale);
}

// The policy for any device, without a launch; None where it refuses.
py::object plan(int multiprocessors, int64_t shared_per_block, int64_t shared_per_multiprocessor,
                unsigned max_cluster, int64_t batch, int64_t row_bytes, int64_t classes,
                int pack_bytes, int variant, unsigned cluster_size, int element_bytes,
                bool rereads) {
  const cuda::DeviceTraits device{
      multiprocessors, shared_per_block, shared_per_multiprocessor, 2048, 60 << 20, max_cluster};
  const cuda::SampleShape shape{batch, row_bytes, classes, pack_bytes, element_bytes, rereads};
  cuda::LaunchOptions options;
  options.variant = static_cast<cuda::Variant>(variant);
  options.cluster_size = cluster_size;
  cuda::Plan plan;
  if (!cuda::make_plan(device, shape, options, plan)) return py::none();
  cuda::set_blocks(device, shape, int64_t{2} * multiprocessors / plan.cluster_size, plan);
  return py::cast(cuda::LaunchReport{"", plan.variant, plan.cluster_size, plan.threads, plan.blocks,
                                     plan.shared_bytes});
}

void bind_launches(py::module_& m) {
  py::class_<cuda::LaunchReport> report(m, "LaunchReport");
  report.def_readonly("kernel", &cuda::LaunchReport::kernel);
  number(report, "variant", &cuda::LaunchReport::variant);
  report.def_readonly("cluster_size", &cuda::LaunchReport::cluster_size);
  report.def_readonly("threads", &cuda::LaunchReport::threads);
  report.def_readonly("blocks", &cuda::LaunchReport::blocks);
  report.def_readonly("shared_bytes", &cuda::LaunchReport::shared_bytes);

  const auto options = [](int variant, unsigned cluster_size, cuda::LaunchReport& report) {
    return cuda::LaunchOptions{static_cast<cuda::Variant>(variant), cluster_size, &report};
  };
  m.def("logit_gap", [=](const LogitGapArguments& a, int variant, unsigned cluster_size) {
    cuda::LaunchReport report;
    succeed(cuda::logit_gap(a, options(variant, cluster_size, report), nullptr));
    return report;
  });
  m.def("first_order_margin", [=](const MarginArguments& a, int variant, unsigned cluster_size) {
    cuda::LaunchReport report;
    succeed(cuda::first_order_margin(a, options(variant, cluster_size, report), nullptr));
    return report;
  });
  m.def("class_margins", [=](const ClassMarginArguments& a, int variant, unsigned cluster_size) {
    cuda::LaunchReport report;
    succeed(cuda::class_margins(a, options(variant, cluster_size, report), nullptr));
    return report;
  });
  m.def("dual_direction", [=](const DirectionArguments& a, int variant, unsigned cluster_size) {
    cuda::LaunchReport report;
    succeed(cuda::dual_direction(a, options(variant, cluster_size, report), nullptr));
    return report;
  });
  m.def("attack_step", [=](const AttackArguments& a, int variant, unsigned cluster_size) {
    cuda::LaunchReport report;
    succeed(cuda::attack_step(a, options(variant, cluster_size, report), nullptr));
    return report;
  });
  m.def("average_margin_loss",
        [=](const LossArguments& a, uintptr_t partials, int variant, unsigned cluster_size) {
          cuda::LaunchReport report;
          succeed(cuda::average_margin_loss(a, reinterpret_cast<void*>(partials),
                                            options(variant, cluster_size, report), nullptr));
          return report;
        });
  m.def("average_margin_loss_partials", &cuda::average_margin_loss_partials);
  m.def("scale", [=](const ScaleArguments& a, int variant, unsigned cluster_size) {
    cuda::LaunchReport report;
    succeed(cuda::scale(a, options(variant, cluster_size, report), nullptr));
    return report;
  });
  m.def("plan", &plan, py::kw_only(), py::arg("multiprocessors"), py::arg("shared_per_block"),
        py::arg("shared_per_multiprocessor"), py::arg("max_cluster"), py::arg("batch"),
        py::arg("row_bytes"), py::arg("classes") = 0, py::arg("pack_bytes") = 16,
        py::arg("variant") = -1, py::arg("cluster_size") = 0, py::arg("element_bytes") = 4,
        py::arg("rereads") = false);
  m.def("next_ticket", [] {
    unsigned number = 0;
    succeed(cuda::next_ticket(nullptr, &number));
    return number;
  });
}

void bind_emulator(py::module_& m) {
  m.def("set_schedule", &simt::set_schedule);
  m.def("set_poison", [](int poison) { simt::set_poison(static_cast<unsigned char>(poison)); });
  py::class_<simt::Device> device(m, "Device");
  device.def_readwrite("number", &simt::Device::number);
  device.def_readwrite("multiprocessors", &simt::Device::multiprocessors);
  device.def_readwrite("cluster_limit", &simt::Device::cluster_limit);
  device.def_readwrite("dynamic_shared_limit", &simt::Device::dynamic_shared_limit);
  device.def_readwrite("shared_per_multiprocessor", &simt::Device::shared_per_multiprocessor);
  device.def_readwrite("capturing", &simt::Device::capturing);
  m.def("device", &simt::device, py::return_value_policy::reference);
  m.def("record_only", [](bool only) { simt::recording().only = only; });
  m.def("launches", [] { return simt::recording().launches; });
  m.def("recorded_parameters", [] { return py::bytes(simt::recording().parameters); });
}

}  // namespace

PYBIND11_MODULE(margin_kernels, m) {
  bind_parts(m);
  bind_arguments(m);
  bind_launches(m);
  bind_emulator(m);
}
