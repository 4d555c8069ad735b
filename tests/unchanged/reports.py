"""Reports of margins and of robust accuracy, and the history of a training.

Every setting of an attack is written out: defaults may become stronger.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from . import api
from .losses import BASE, MODES, train
from .networks import inputs_for, labels_for, network
from .situation import Situation

__all__ = ["situations"]

_COUNT = 8
_ATTACK = {
    "steps": 25,
    "targets": 1,
    "radius_change": 0.1,
    "step": 1.0,
    "bisections": 12,
    "box": True,
}
_SAMPLING = {
    "points": 24,
    "blocks": 2,
    "radius": 1.5,
    "nearest": None,
    "clip": False,
    "extreme_value": False,
    "chunk": 16,
}
_CERTIFICATION = {"bisections": 10, "rows": 4096}
_MEASURE: Mapping[str, Any] = {"p": 2, "classes": "all", "signed": True, "bounds": (), "seed": 5}
_PGD: Mapping[str, Any] = {
    "p": 2,
    "steps": 8,
    "restarts": 1,
    "relative_step": 2.5,
    "random_start": True,
    "norm_floor": 0.0,
    "seed": 5,
    "data_range": None,
}
_ROBUST: Mapping[str, Any] = {
    **_PGD,
    "eps": (0.1, 0.3, 0.6),
    "losses": ("gap", "cross_entropy"),
    "diagnose_masking": True,
}


def _report(
    of: Callable[..., dict[str, Any]],
    net: str,
    dtype: torch.dtype,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    model, inputs = network(net, dtype), inputs_for(net, _COUNT, dtype)
    target = labels_for(model, inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = of(model, inputs, target, settings)
    return {**report, "warnings": len(caught)}


def _history(settings: Mapping[str, Any]) -> dict[str, Any]:
    model, inputs = network("gelu"), inputs_for("gelu", 20)
    target = labels_for(model, inputs)
    splits = {"train": (inputs[:12], target[:12]), "test": (inputs[12:], target[12:])}

    def epoch(trained: Any, after_step: Callable[[api.Criterion], None]) -> None:
        loss = {**BASE, **MODES["double_backward"]}
        train(trained, *splits["train"], loss, steps=3, after_step=after_step)

    history = api.monitor_history(splits, settings, epoch, model, epochs=2)
    return {f"record {i}": record for i, record in enumerate(history)}


def _margins() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name to network and settings of measure."""
    several = {"p": (1, 1.5, 2, math.inf)}
    attack = {"bounds": ("attack",), "attack": _ATTACK}
    sampled = {"bounds": ("sampled",), "sampling": _SAMPLING}
    certified = {"bounds": ("certified",), "certification": _CERTIFICATION}
    everything = {
        "bounds": ("certified", "attack", "sampled"),
        "attack": _ATTACK,
        "sampling": _SAMPLING,
        "certification": _CERTIFICATION,
    }
    return {
        "linear": ("linear", several),
        "linear, unsigned": ("linear", {**several, "signed": False}),
        "relu": ("relu", several),
        "gelu, unsigned": ("gelu", {**several, "signed": False}),
        "convolution": ("convolution", several),
        "dead_relu": ("dead_relu", several),
        "flat": ("flat", several),
        "relu, runner_up": ("relu", {**several, "classes": "runner_up"}),
        "relu, 2 classes": ("relu", {**several, "classes": 2}),
        "gelu, input_std": ("gelu", {"input_std": 0.25}),
        "convolution, input_std by channel": ("convolution", {"input_std": [0.25, 0.5]}),
        "gelu, batches of 3, 7 samples": ("gelu", {"batch_size": 3, "limit": 7}),
        "linear, attack": ("linear", {**attack, "p": (2, math.inf)}),
        "gelu, attack": ("gelu", {**attack, "p": (2, math.inf)}),
        "gelu, attack in a box": ("gelu", {**attack, "p": (2, math.inf), "data_range": (-2, 2)}),
        "gelu, attack out of the box": (
            "gelu",
            {"bounds": ("attack",), "attack": {**_ATTACK, "box": False}, "data_range": (-2, 2)},
        ),
        "gelu, attack without targets": (
            "gelu",
            {"bounds": ("attack",), "attack": {**_ATTACK, "targets": 0}},
        ),
        "gelu, attack, unsigned": ("gelu", {**attack, "signed": False}),
        "convolution, attack, input_std": ("convolution", {**attack, "input_std": [0.25, 0.5]}),
        "relu, certified": ("relu", {**certified, "p": (2, math.inf)}),
        "linear, certified": ("linear", certified),
        "relu_convolution, certified, input_std": (
            "relu_convolution",
            {**certified, "input_std": [0.25, 0.5]},
        ),
        "relu, sampled": ("relu", {**sampled, "p": (1, 2, math.inf)}),
        "gelu, sampled, 2 nearest, clipped": (
            "gelu",
            {
                "bounds": ("sampled",),
                "sampling": {**_SAMPLING, "nearest": 2, "clip": True},
                "data_range": (-2, 2),
            },
        ),
        "relu, all bounds": ("relu", {**everything, "p": (2, math.inf)}),
        "relu, all bounds, unsigned": ("relu", {**everything, "signed": False}),
    }


def _robust_accuracies() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name to network and settings of robust_accuracy."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for p in (2, math.inf):
        for net in ("linear", "gelu", "convolution"):
            found[f"p={p:g}, {net}"] = (net, {"p": p})
        for loss in ("gap", "cross_entropy"):
            found[f"p={p:g}, {loss} only"] = ("relu", {"p": p, "losses": (loss,)})
        found[f"p={p:g}, in a box"] = ("gelu", {"p": p, "data_range": (-2.0, 2.0)})
        found[f"p={p:g}, input_std"] = ("convolution", {"p": p, "input_std": [0.25, 0.5]})
    return {
        **found,
        "radii out of order": ("gelu", {"eps": (0.6, 0.1, 0.3)}),
        "dead_relu": ("dead_relu", {}),
        "2 restarts": ("gelu", {"restarts": 2}),
        "from the sample": ("gelu", {"random_start": False}),
        "norm floor": ("gelu", {"norm_floor": 0.5}),
        "undiagnosed": ("gelu", {"diagnose_masking": False}),
        "batches of 3, 7 samples": ("gelu", {"batch_size": 3, "limit": 7}),
    }


def _attacks() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name to network and settings of one attack."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for p in (2, math.inf):
        for loss in ("gap", "cross_entropy"):
            for net in ("gelu", "convolution"):
                found[f"p={p:g}, {loss}, {net}"] = (net, {"p": p, "loss": loss})
        found[f"p={p:g}, in a box"] = ("gelu", {"p": p, "loss": "gap", "data_range": (-1.5, 1.5)})
        found[f"p={p:g}, input_std"] = (
            "convolution",
            {"p": p, "loss": "gap", "input_std": [0.25, 0.5]},
        )
    return {
        **found,
        "2 restarts": ("gelu", {"loss": "gap", "restarts": 2}),
        "from the sample": ("gelu", {"loss": "gap", "random_start": False}),
        "norm floor": ("gelu", {"loss": "gap", "norm_floor": 2.0}),
    }


def situations() -> dict[str, Situation]:
    found: dict[str, Situation] = {}
    for of, name, base, cases in (
        (api.measured, "measure", _MEASURE, _margins()),
        (api.robustness, "robust_accuracy", _ROBUST, _robust_accuracies()),
        (api.attacked, "pgd", {**_PGD, "eps": 0.5}, _attacks()),
    ):
        for case, (net, further) in cases.items():
            settings = {**base, **further}
            search = of is not api.measured or bool(settings["bounds"])
            wide = of is api.attacked or bool(settings.get("bounds"))
            for dtype in (torch.float32, torch.float64) if wide else (torch.float32,):
                label = str(dtype).removeprefix("torch.")
                compute = partial(_report, of, net, dtype, settings)
                found[f"{name}/{case}, {label}"] = Situation(compute, dtype, search)
    settings = {"p": 2, "limit": 10, "every_steps": 2, "classes": "all"}
    found["monitor"] = Situation(partial(_history, settings), search=True)
    return found
