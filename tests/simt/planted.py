"""Bugs planted in the kernels of csrc/cuda, each by one replacement in one source.

The kernels of the library are executed, with one fault in them: the tests of the emulated ops must
fail. `tests/test_cuda_planted_simt.py` runs them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from simt import kernel_library
from simt.kernel_library import CSRC

__all__ = ["PLANTED", "Planted", "plant"]


@dataclass(frozen=True)
class Planted:
    """One fault.

    Attributes:
        name: What is wrong.
        file: The source, in csrc.
        right: What stands there, once.
        wrong: What takes its place.
        tests: The tests that should see it, as pytest's -k takes them.
        source: The source of csrc/cuda that is compiled with the fault.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: str
    source: str


def _attack(name: str, right: str, wrong: str, file: str = "cuda/attack_step.cu") -> Planted:
    return Planted(name, file, right, wrong, "attack_step", "attack_step.cu")


def _classes(name: str, right: str, wrong: str, file: str = "cuda/class_margins.cu") -> Planted:
    return Planted(name, file, right, wrong, "class_margins", "class_margins.cu")


def _direction(name: str, right: str, wrong: str, file: str = "cuda/row_pass.h") -> Planted:
    return Planted(name, file, right, wrong, "dual_direction", "direction.cu")


def _additive(name: str, right: str, wrong: str, file: str = "cuda/loss_kernel.h") -> Planted:
    return Planted(name, file, right, wrong, "additive_margin", "loss.cu")


PLANTED = (
    _attack(
        "the last part is left out",
        "if (start + u * step >= parts) break;",
        "if (start + u * step >= parts - 1) break;",
        "cuda/attack_row.h",
    ),
    _attack(
        "no projection to the ball",
        "channel.factor * project_at<norm>(projection, d[k])",
        "channel.factor * d[k]",
        "cuda/attack_row.h",
    ),
    _attack(
        "no data range",
        "clamp_to(start[k] + offset, channel.low, channel.high)",
        "start[k] + offset",
        "cuda/attack_row.h",
    ),
    _attack("the channel of the first part", "        channel.step();\n", "", "cuda/attack_row.h"),
    _attack(
        "the factor of the channel before",
        "if (channel_ != before) load();",
        "if (channel_ != before && within_ != 0) load();",
        "cuda/attack_row.h",
    ),
    _attack(
        "packs of rows that are not aligned",
        "const bool packed = whole(",
        "const bool packed = true || whole(",
    ),
    _attack(
        "each warp takes its own norm",
        "return norm_of_group(served, state, group);",
        "return norm_of_warp(served, state);",
    ),
    _attack(
        "no second pass",
        "second_pass_factor<norm>(state); again != Acc(1)",
        "second_pass_factor<norm>(state); false",
    ),
    _attack(
        "a tie with the last of the steepest is left out",
        "found.count > k ? found.count : k;",
        "k;",
        "core/attack.h",
    ),
    _attack(
        "the l1 threshold of the first round",
        "if (!(next.count < found.count) || next.count == Acc(0)) return threshold;",
        "return threshold;",
        "core/attack.h",
    ),
    _attack("a search among NaN", "if (is_nan(value)) {", "if (false) {"),
    _classes(
        "no barrier before the nearest class",
        "__syncthreads();  // the sample's margins are stored",
        "",
    ),
    _classes(
        "the first block takes itself for the last",
        "atomicInc(&tickets[task.ticket], gridDim.x - 1) == gridDim.x - 1;",
        "atomicInc(&tickets[task.ticket], gridDim.x - 1) == 0;",
    ),
    _classes(
        "the last of tied classes",
        "(equal && other.number < nearest.number)",
        "(equal && other.number > nearest.number)",
        "core/class_margin.h",
    ),
    _classes("head and tail are left out", "if (thread >= row.ends) return;", "return;"),
    _classes(
        "a NaN is dropped from the largest",
        "is_nan(norms.one) ? norms.one : norms.max",
        "norms.max",
    ),
    _classes("no second pass", "if (factor != Acc(1)) {", "if (false) {"),
    _classes("warps skip classes", "k < arguments.classes; k += warps", "k < warps; k += warps"),
    _classes(
        "norms of another sample",
        "const int64_t at = mine * arguments.batch * arguments.classes + r;",
        "const int64_t at = mine * arguments.classes + r;",
    ),
    _direction(
        "no second pass",
        "again != Acc(1)",
        "false",
        "cuda/direction.cu",
    ),
    _direction(
        "what is written has the second pass's factor",
        "path{first_, factor};",
        "path{Acc(1), factor * first_};",
    ),
    _direction(
        "the first channel's factor for all",
        "channel = channel + 1 == count ? 0 : channel + 1;",
        "channel = 0;",
    ),
    _direction(
        "packs beyond those that are kept begin at the kept ones' end",
        "return begin < kept_packs_ ? kept_packs_ + opaque(thread_) : first_from(begin);",
        "return kept_packs_ + opaque(thread_);",
    ),
    _direction(
        "a NaN only where the largest element was",
        "const bool all = is_nan(times_zero(direction.coefficient));",
        "const bool all = false;",
    ),
    _direction(
        "zeros under an infinite factor stay zeros",
        "const bool all = is_nan(times_zero(direction.coefficient));",
        "const bool all = is_nan(direction.coefficient);",
    ),
    _additive("the label is not left out", "if (k == target) continue;", ""),
    _additive(
        "the label's exponential in the second pass",
        "if (kHasRow && k == gradient.logits.target && task.options.additive()) e = Acc(0);",
        "",
    ),
    _additive(
        "one lane reads all classes",
        "for (int k = static_cast<int>(threadIdx.x % kWarp); k < logits.classes(); k += kWarp) {\n"
        "    if (k == target)",
        "for (int k = 0; k < logits.classes(); k += kWarp) {\n    if (k == target)",
    ),
    _additive(
        "the label is lowered by tau alone",
        "others.target - tau * norm",
        "others.target - tau",
        "core/additive_margin.h",
    ),
    _additive(
        "the spread of all classes",
        "logit_row.smoothing_sum = others.spread;",
        "",
    ),
)


# Every type is compiled from the same source, so bugs are planted in the kernels of float32 alone.
_TYPES = ("Float16", "BFloat16", "double")


def plant(bug: Planted | None, source: str, folder: Path) -> Path:
    """Return a library whose kernels of one source serve float32 alone, and have a bug or none."""
    root = folder / "csrc"
    shutil.copytree(CSRC, root, ignore=shutil.ignore_patterns("cpu", "torch"))
    launch = root / "cuda" / "launch.h"
    text = launch.read_text()
    for kind in _TYPES:
        text = _replaced(text, f"return launch(Type<{kind}>());", "return cudaErrorInvalidValue;")
    launch.write_text(text)
    if bug is not None:
        path = root / bug.file
        path.write_text(_replaced(path.read_text(), bug.right, bug.wrong))
    return kernel_library.build_changed(root / "cuda" / source, root, folder)


def _replaced(text: str, right: str, wrong: str) -> str:
    assert text.count(right) == 1, f"this stands there {text.count(right)} times: {right}"
    return text.replace(right, wrong)
