"""Checks of shapes, types and labels, with messages that say what was expected and what came.

The C++ ops check the same before they touch memory (csrc/torch/check.h).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = [
    "check_class_grad",
    "check_class_weight",
    "check_classes",
    "check_eps",
    "check_grad",
    "check_labels",
    "check_logits",
    "check_logits_and_labels",
    "check_loss_settings",
    "check_nearest",
    "check_normalizer",
    "check_probabilities",
    "check_same_device",
    "check_sample_vector",
    "check_target",
    "check_weight_values",
    "shape_text",
    "values_known",
    "values_readable",
]

# Devices whose values can be read without a wait.
_AT_HAND = ("cpu",)

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shape_text(tensor: Tensor) -> str:
    """Shape as a user writes it: [64, 3072]."""
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def check_same_device(name: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Require tensors, each with its name, on the device of the first."""
    device = tensor.device
    for other_name, other in others.items():
        if other is not None and other.device != device:
            raise ValueError(
                f"{other_name} must be on the device of {name}, {device}, got {other.device}"
            )


def check_class_grad(grad: Tensor) -> None:
    """Require grad [B, K, ...] of a floating type, with at least one element a class."""
    if grad.dim() < 3:
        raise ValueError(f"grad must be [B, K, ...], got {shape_text(grad)}")
    if grad.dtype not in FLOAT_TYPES:
        raise TypeError(f"grad must be float16, bfloat16, float32 or float64, got {grad.dtype}")
    if grad.shape[0] and grad.shape[1] and not grad.numel():
        raise ValueError(f"grad must have at least one element a class, got {shape_text(grad)}")


def check_logits(logits: Tensor, target: Tensor) -> None:
    """Require logits [B, C] of a floating type with C >= 2 and target int64 [B]."""
    check_same_device("logits", logits, target=target)
    if logits.dim() != 2:
        raise ValueError(f"logits must be [B, C], got {shape_text(logits)}")
    if logits.dtype not in FLOAT_TYPES:
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have at least 2 classes, got {shape_text(logits)}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 class indices, got {target.dtype}")
    if target.dim() != 1 or target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"target must be [B] = [{logits.shape[0]}] (logits are {shape_text(logits)}), "
            f"got {shape_text(target)}"
        )


def check_labels(name: str, labels: Tensor, classes: int, ignore_index: int | None) -> None:
    """Require labels in 0..classes-1 or equal to ignore_index; synchronises with a GPU."""
    bad = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        bad &= labels != ignore_index
    if bool(bad.any()):
        first = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} must lie in 0..{classes - 1}"
            + (f" or equal ignore_index = {ignore_index}" if ignore_index is not None else "")
            + f", got {int(labels[tuple(first)])} at index {_index_text(first)}"
        )


def check_nearest(nearest: Tensor, target: Tensor, classes: int, ignore_index: int) -> None:
    """Require nearest [B], in range and never the label of a sample; synchronises with a GPU."""
    check_sample_vector("nearest", nearest, target.shape[0])
    if nearest.dtype != torch.int64:
        raise TypeError(f"nearest must be int64 class indices, got {nearest.dtype}")
    counted = target != ignore_index
    check_labels("nearest", torch.where(counted, nearest, 0), classes, None)
    if bool((counted & (nearest == target)).any()):
        raise ValueError("nearest must differ from target in every sample")


def _index_text(index: list[int]) -> str:
    return str(index[0] if len(index) == 1 else index)


def check_logits_and_labels(logits: Tensor, target: Tensor) -> None:
    """Require logits [B, C, d1, ...] and target int64 [B, d1, ...] or floating [B, C, d1, ...]."""
    check_same_device("logits", logits, target=target)
    if logits.dim() < 2:
        raise ValueError(f"logits must be [B, C] or [B, C, d1, ...], got {shape_text(logits)}")
    if logits.dtype not in FLOAT_TYPES:
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have at least 2 classes, got {shape_text(logits)}")
    if target.is_floating_point():
        if target.requires_grad:
            raise ValueError("target must not require grad: the loss gives labels no gradient")
        expected, form = logits.shape, "B, C"
    elif target.dtype == torch.int64:
        expected, form = logits.shape[:1] + logits.shape[2:], "B"
    else:
        raise TypeError(
            "target must be int64 class indices or floating point probabilities, "
            f"got {target.dtype}"
        )
    if target.shape != expected:
        form += ", d1, ..." if logits.dim() > 2 else ""
        sizes = ", ".join(str(size) for size in expected)
        raise ValueError(
            f"target must be [{form}] = [{sizes}] (logits are {shape_text(logits)}), "
            f"got {shape_text(target)}"
        )


def check_probabilities(target: Tensor) -> None:
    """Require target [B, C, d1, ...] >= 0 with sums of 1 over C; synchronises with a GPU."""
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 2e-2}.get(target.dtype, 1e-4)
    sums = target.sum(1, dtype=torch.float64)
    bad = ((sums - 1).abs() > tolerance) | ~(target >= 0).all(1)
    if bool(bad.any()):
        first = bad.nonzero()[0].tolist()
        smallest = target.amin(1)[tuple(first)]
        raise ValueError(
            "target must hold probabilities, each >= 0 and 1 in sum over the classes, got the sum "
            f"{float(sums[tuple(first)]):.6g} and the smallest {float(smallest):.6g} "
            f"at index {_index_text(first)}. For several labels a sample pass logits.unsqueeze(1), "
            "which takes each column as a label of its own (docs/labels.md); regression needs "
            "another loss"
        )


def check_target(target: Tensor, classes: int, ignore_index: int) -> None:
    """Require class labels in range, or probabilities; synchronises with a GPU."""
    if target.is_floating_point():
        check_probabilities(target)
    else:
        check_labels("target", target, classes, ignore_index)


def check_grad(grad: Tensor, batch: int) -> None:
    """Require grad [B, ...] of a floating type with at least one element a sample."""
    if grad.dtype not in FLOAT_TYPES:
        raise TypeError(f"grad must be float16, bfloat16, float32 or float64, got {grad.dtype}")
    if grad.dim() < 2 or grad.shape[0] != batch:
        raise ValueError(f"grad must be [B, ...] with B = {batch}, got {shape_text(grad)}")
    if batch > 0 and grad[0].numel() == 0:
        raise ValueError(f"grad must have at least one element a sample, got {shape_text(grad)}")


def check_sample_vector(name: str, vector: Tensor, batch: int) -> None:
    """Require vector [B]."""
    if vector.dim() != 1 or vector.shape[0] != batch:
        raise ValueError(f"{name} must be [B] = [{batch}], got {shape_text(vector)}")


def check_eps(eps: float, dtype: torch.dtype | None = None) -> None:
    """Require a floor of the norm above 0: without one a zero gradient divides by zero.

    In the type that norms are accumulated in, it and its inverse have to be normal numbers.
    """
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    if eps == math.inf:
        raise ValueError(f"eps must be finite, got {eps}")
    if dtype is not None:
        info = torch.finfo(dtype)
        if not info.tiny <= eps <= info.max:
            raise ValueError(
                f"eps must lie in {info.tiny:.3g}..{info.max:.3g} for {dtype}, got {eps}"
            )


def check_numbers(**settings: object) -> None:
    """Require numbers, or what can stand for one, and name the setting that is none."""
    for name, value in settings.items():
        if not hasattr(value, "__float__"):
            raise TypeError(f"{name} must be a number, got {value!r}")


def check_loss_settings(mu: float, eps: float, label_smoothing: float) -> None:
    """Require mu >= 0, eps > 0 and label_smoothing in 0..1; none of them NaN or infinite."""
    check_numbers(mu=mu, eps=eps, label_smoothing=label_smoothing)
    if not mu >= 0:
        raise ValueError(f"mu must be at least 0, got {mu}")
    if mu == math.inf:
        raise ValueError(f"mu must be finite, got {mu}")
    check_eps(eps)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")


def check_classes(classes: str | int) -> None:
    """Require "runner_up", "all" or a whole number of at least 1."""
    if not (classes in ("runner_up", "all") or (isinstance(classes, int) and classes >= 1)):
        raise ValueError(f'classes must be "runner_up", "all" or a number >= 1, got {classes!r}')


def check_class_weight(weight: Tensor, logits: Tensor) -> None:
    """Require weight [C] on the device of logits [B, C] or [B, C, d1, ...]."""
    check_same_device("logits", logits, class_weight=weight)
    classes = logits.shape[1]
    if weight.dim() != 1 or weight.shape[0] != classes:
        raise ValueError(f"class_weight must be [{classes}], got {shape_text(weight)}")
    if values_known(weight):
        check_weight_values(weight)


def values_readable(tensor: Tensor) -> bool:
    """Whether an op may read values: it waits for no device, and no torch.func transform is active.

    Under a transform, gather and cross_entropy still refuse a label out of range, in torch's words.
    """
    return tensor.device.type in _AT_HAND and not torch._C._are_functorch_transforms_active()


def values_known(tensor: Tensor) -> bool:
    """Whether Python may look at values: as for an op, and not while a program is traced."""
    return (
        values_readable(tensor)
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, nn.Parameter)
    )


def check_weight_values(weight: Tensor) -> None:
    """Require finite class weights, which may be 0 or negative; synchronises with a GPU."""
    bad = ~weight.isfinite()
    if bool(bad.any()):
        first = int(bad.flatten().nonzero()[0])
        raise ValueError(
            f"class weights must be finite, got {float(weight.flatten()[first])} for class {first}"
        )


def check_normalizer(normalizer: float | Tensor | None) -> float | Tensor | None:
    """Require a finite divisor above 0; a bad one on a GPU becomes NaN, without an error."""
    if normalizer is None:
        return None
    if not isinstance(normalizer, Tensor):
        if not 0 < normalizer < math.inf:
            raise ValueError(f"normalizer must be above 0 and finite, got {normalizer}")
        return normalizer
    if normalizer.numel() != 1:
        raise ValueError(f"normalizer must be one number, got {shape_text(normalizer)}")
    value = normalizer.detach().reshape(())
    good = (value > 0) & value.isfinite()
    if not values_known(normalizer):
        return torch.where(good, value, math.nan)
    if not bool(good):
        raise ValueError(f"normalizer must be above 0 and finite, got {float(value)}")
    return value
