"""How far results are from float64, beside plain PyTorch in the same types."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["assert_as_accurate", "error"]

# Of the type that plain PyTorch's result has: where it happens to be exact, ours may still round.
ROUNDING = 1.0


def error(found: Tensor, truth: Tensor) -> float:
    """Largest error, relative to the largest magnitude."""
    if truth.numel() == 0:
        return 0.0
    scale = float(truth.abs().max()) or 1.0
    return float((found.to(truth) - truth).abs().max()) / scale


def assert_as_accurate(
    names: list[str],
    ours: list[Tensor],
    plain: list[Tensor],
    truth: list[Tensor],
    report: Callable[[str, float, float, float], None] | None = None,
) -> None:
    """Error of ours at most twice that of plain PyTorch, both against float64."""
    for name, o, p, t in zip(names, ours, plain, truth, strict=True):
        ours_error, plain_error = error(o, t), error(p, t)
        floor = ROUNDING * torch.finfo(o.dtype).eps
        if report is not None:
            report(name, ours_error, plain_error, floor)
        assert ours_error <= 2 * plain_error + floor, (
            f"{name}: error {ours_error:.3g}, of plain PyTorch {plain_error:.3g}"
        )
