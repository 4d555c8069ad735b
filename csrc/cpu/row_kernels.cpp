// Compiled once for each instruction set, whose name is MARGIN_ISA. Only the table is visible
// outside this file. Nothing in it or in the loops may call a template of the standard library,
// because the linker would keep one instruction set's copy of it for all.
#include "cpu/row_kernels.h"

#include "cpu/attack_loops.h"
#include "cpu/gradient_loops.h"
#include "cpu/logit_loops.h"

namespace margin::cpu::MARGIN_ISA {
namespace {

template <typename T>
constexpr RowKernels<T> kRowKernels = {
    accumulate<T>,  write_direction<T>,      move<T>,      project<T>, sum_above<T>,
    load_logits<T>, write_logit_gradient<T>, scale_row<T>,
};

template <typename A>
constexpr LogitKernels<A> kLogitKernels = {
    reduce_logits<A>,         reduce_others<A>,  reduce_together<false, A>,
    reduce_together<true, A>, find_runner_up<A>,
};

#define MARGIN_STRINGIFY_(x) #x
#define MARGIN_STRINGIFY(x) MARGIN_STRINGIFY_(x)

}  // namespace

extern const KernelSet kKernelSet;
const KernelSet kKernelSet = {
    MARGIN_STRINGIFY(MARGIN_ISA), kRowKernels<Float16>, kRowKernels<BFloat16>, kRowKernels<float>,
    kRowKernels<double>,          kLogitKernels<float>, kLogitKernels<double>,
};

}  // namespace margin::cpu::MARGIN_ISA
