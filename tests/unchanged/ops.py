"""The functional ops: results and gradients in every floating type, norm and setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import api
from .networks import CLASSES, inputs_for, labels_for, network, numbers
from .situation import Situation

__all__ = ["situations"]

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NORMS = (1, 1.5, 2, math.inf)
_BATCH = 5
_TARGET = (0, 3, 1, 2, 0)
_LOSS: Mapping[str, Any] = {
    "regularizer": ("ramp", -0.4, 0.8),
    "mu": 0.7,
    "p": 2,
    "eps": 1e-6,
    "reduction": "mean",
}


def _differentiated(results: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> dict[str, Any]:
    """The results, and the leaves' gradients of a weighted sum of those that have some."""
    total = torch.zeros((), dtype=torch.float64)
    for name, value in results.items():
        if isinstance(value, Tensor) and value.requires_grad:
            known = torch.where(value.isfinite(), value, 0.0).double()
            total = total + (known * numbers(name, *value.shape, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    named = zip(leaves, gradients, strict=True)
    return {**results, **{f"gradient of {name}": gradient for name, gradient in named}}


def _logit_gap(by: str, dtype: torch.dtype, critical: tuple[int, ...] | None) -> dict[str, Any]:
    logits = numbers("logits", _BATCH, CLASSES, dtype=dtype).requires_grad_()
    target = torch.tensor([0, 3, 99, 2, 0])
    others = None if critical is None else torch.tensor(critical)
    found = api.op(by, "logit_gap", logits, target, critical=others, ignore_index=99)
    return _differentiated(found, {"logits": logits})


def _first_order_margin(
    by: str, dtype: torch.dtype, size: tuple[int, ...], **settings: Any
) -> dict[str, Any]:
    gap = numbers("gap", _BATCH, dtype=dtype).requires_grad_()
    grad = numbers("grad", _BATCH, *size, dtype=dtype).requires_grad_()
    found = api.op(by, "first_order_margin", gap, grad, **settings)
    return _differentiated(found, {"gap": gap, "grad": grad})


def _dual_direction(
    by: str, dtype: torch.dtype, size: tuple[int, ...], **settings: Any
) -> dict[str, Any]:
    grad = numbers("grad", _BATCH, *size, dtype=dtype)
    base = numbers("base", _BATCH, *size, dtype=dtype)
    factor = numbers("factor", _BATCH)
    return {
        **api.op(by, "dual_direction", grad, **settings),
        "from a base": api.op(by, "dual_direction", grad, factor, base=base, **settings),
    }


def _average_margin_loss(
    by: str,
    dtype: torch.dtype,
    size: tuple[int, ...] = (7,),
    *,
    dense: tuple[int, ...] = (),
    soft: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
    without_grad: bool = False,
    twice: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    logits = numbers("logits", _BATCH, CLASSES, *dense, dtype=dtype).requires_grad_()
    shape = (_BATCH, *[1] * len(dense))
    target = torch.tensor(_TARGET).reshape(shape).expand(_BATCH, *dense).contiguous()
    if soft:
        hard = torch.nn.functional.one_hot(target, CLASSES).movedim(-1, 1).to(dtype)
        target = 0.75 * hard + 0.25 * hard.roll(1, dims=0)
    grad = numbers("grad", _BATCH, *size, dtype=dtype).contiguous(memory_format=layout)
    leaves = {"logits": logits}
    if not without_grad:
        leaves["grad"] = grad.requires_grad_()
    given = {**_LOSS, **settings}
    if "critical" in given:
        given["critical"] = torch.tensor(given["critical"])
    found = api.op(by, "average_margin_loss", logits, target, leaves.get("grad"), **given)
    if not twice:
        return _differentiated(found, leaves)
    first = torch.autograd.grad(found["loss"], list(leaves.values()), create_graph=True)
    return _differentiated(dict(zip(("by logits", "by grad"), first, strict=True)), leaves)


def _sample_gap(by: str, positions: str, soft: bool) -> dict[str, Any]:
    logits = numbers("dense logits", 3, CLASSES, 5).requires_grad_()
    target = torch.arange(15).reshape(3, 5) % CLASSES
    settings: dict[str, Any] = {"positions": positions}
    if soft:
        target = torch.nn.functional.softmax(numbers("soft", 3, CLASSES, 5), dim=1)
    else:
        target[0, :2] = 99
        settings |= {"ignore_index": 99, "weight": torch.tensor([0.5, 1.0, 2.0, 1.5])}
    found = api.op(by, "sample_gap", logits, target, **settings)
    return _differentiated(found, {"logits": logits})


def _soft_gap(by: str) -> dict[str, Any]:
    logits = numbers("logits", _BATCH, CLASSES).requires_grad_()
    target = numbers("soft", _BATCH, CLASSES).softmax(dim=1)
    return _differentiated(api.op(by, "soft_gap", logits, target), {"logits": logits})


def _linear_margin(p: float) -> dict[str, Any]:
    weight, bias = numbers("weight", CLASSES, 6), numbers("bias", CLASSES)
    inputs = inputs_for("linear")
    target = labels_for(network("linear"), inputs)
    return {"margin": api.linear_margin(weight, bias, inputs, target, p)}


def _orthogonality(net: str) -> dict[str, Any]:
    model = network(net)
    penalty = api.orthogonality_penalty(model)
    weights = {k: p for k, p in model.named_parameters() if p.dim() > 1}
    return _differentiated({"penalty": penalty}, weights)


def _every_type_and_norm() -> dict[str, Situation]:
    found: dict[str, Situation] = {}
    for by in api.OPS:
        for dtype in _TYPES:
            name = f"{by}/{str(dtype).removeprefix('torch.')}"

            def add(op: str, compute: Any, name: str = name, dtype: torch.dtype = dtype) -> None:
                found[f"{name}/{op}"] = Situation(compute, dtype)

            add("logit_gap", partial(_logit_gap, by, dtype, None))
            for p in _NORMS:
                norm = {"p": p}
                sizes = {"": (7,)} if by == "reference" else {"": (7,), ", long rows": (2, 700)}
                for label, size in sizes.items():
                    end = f"p={p:g}{label}"
                    margin = partial(_first_order_margin, by, dtype, size, **norm)
                    add(f"first_order_margin, {end}", margin)
                    add(f"dual_direction, {end}", partial(_dual_direction, by, dtype, size, **norm))
                    loss = partial(_average_margin_loss, by, dtype, size, **norm)
                    add(f"average_margin_loss, {end}", loss)
    return found


def _settings_of_the_loss() -> dict[str, dict[str, Any]]:
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5])
    return {
        **{
            f"{kind[0]} regularizer": {"regularizer": kind}
            for kind in (("hinge", 0.5), ("linear",), ("softplus", 0.7), ("exponential", 1.3))
        },
        "sum": {"reduction": "sum"},
        "each its loss": {"reduction": "none"},
        "ignored, class weights, smoothed": {
            "ignore_index": 3,
            "weight": weight,
            "label_smoothing": 0.1,
        },
        "classes given": {"critical": (1, 0, 2, 3, 2)},
        "input_std": {"input_std": 0.25},
        "input_std by channel": {"size": (3, 4, 4), "input_std": [0.25, 0.5, 1.0]},
        "channels last, input_std": {
            "size": (3, 4, 4),
            "input_std": [0.25, 0.5, 1.0],
            "layout": torch.channels_last,
        },
        "large eps": {"eps": 3.0},
        "logit gaps": {"without_grad": True},
        "twice": {"twice": True},
        "soft": {"soft": True},
        "dense": {"dense": (3,)},
        "dense, worst": {"dense": (3,), "positions": "worst"},
        "dense, logit gaps": {"dense": (3,), "without_grad": True},
        "dense, soft, each its loss": {"dense": (3,), "soft": True, "reduction": "none"},
    }


def situations() -> dict[str, Situation]:
    found = {f"op/{name}": situation for name, situation in _every_type_and_norm().items()}
    for by in api.OPS:
        computes: dict[str, Any] = {
            "logit_gap, classes given": partial(_logit_gap, by, torch.float32, (1, 0, 2, 3, 2)),
            "first_order_margin, input_std": partial(
                _first_order_margin, by, torch.float32, (2, 5), p=2, eps=0.5, input_std=[0.25, 0.5]
            ),
            "dual_direction, input_std": partial(
                _dual_direction, by, torch.float32, (2, 5), p=2, input_std=[0.25, 0.5]
            ),
            "soft_gap": partial(_soft_gap, by),
        }
        for positions in ("mean", "worst"):
            computes[f"sample_gap, {positions}"] = partial(_sample_gap, by, positions, False)
            computes[f"sample_gap, {positions}, soft"] = partial(_sample_gap, by, positions, True)
        for name, settings in _settings_of_the_loss().items():
            compute = partial(_average_margin_loss, by, torch.float32, **settings)
            computes[f"average_margin_loss, {name}"] = compute
        found.update({f"op/{by}/{name}": Situation(c) for name, c in computes.items()})
    for p in _NORMS:
        found[f"op/linear_margin, p={p:g}"] = Situation(partial(_linear_margin, p))
    for net in ("gelu", "convolution"):
        found[f"op/orthogonality_penalty, {net}"] = Situation(partial(_orthogonality, net))
    return found
