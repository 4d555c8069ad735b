// The CPU backend: every op of csrc/core/arguments.h, without torch. The binding has checked the
// labels.
#pragma once

#include "core/arguments.h"
#include "cpu/parallel.h"

namespace margin::cpu {

void logit_gap(const LogitGapArguments& arguments, const Parallel& parallel);
void first_order_margin(const MarginArguments& arguments, const Parallel& parallel);
void dual_direction(const DirectionArguments& arguments, const Parallel& parallel);
void class_margins(const ClassMarginArguments& arguments, const Parallel& parallel);
void attack_step(const AttackArguments& arguments, const Parallel& parallel);
void average_margin_loss(const LossArguments& arguments, const Parallel& parallel);
void scale(const ScaleArguments& arguments, const Parallel& parallel);

}  // namespace margin::cpu
