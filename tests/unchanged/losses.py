"""The loss of a training loop: values, statistics and gradients in all its settings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import api
from .networks import dense_labels, inputs_for, labels_for, network, numbers, soft_labels
from .situation import Situation

__all__ = ["BASE", "MODES", "situations", "train"]

BASE: Mapping[str, Any] = {
    "p": 2,
    "mu": 0.7,
    "tau": 1.0,
    "regularizer": "ramp",
    "eps": 1e-6,
    "label_smoothing": 0.0,
    "reduction": "mean",
}
_STEP = {"side": "toward", "step": 1.0, "unit": "margin", "deferred": True}
_SECANT = {"steps": 2, "radius": 1.0, "data_range": None}

# The ways to a margin and its gradient.
MODES: Mapping[str, Mapping[str, Any]] = {
    "double_backward": {"gradient": "double_backward", "classes": "runner_up"},
    "finite_difference": {
        "gradient": "finite_difference",
        "classes": "runner_up",
        "difference": _STEP,
    },
    "detached": {"gradient": "detached", "classes": "runner_up"},
    "secant": {"margin": "secant", "secant": _SECANT},
    "logit_gap": {"margin": "logit_gap"},
}
_FIRST_ORDER = ("double_backward", "finite_difference", "detached")
_WITH_PASSES = (*_FIRST_ORDER, "secant")

Labels = Callable[[nn.Module, Tensor], Tensor]


def _settings(mode: str, **further: Any) -> dict[str, Any]:
    return {**BASE, **MODES[mode], **further}


def _gradients(model: nn.Module) -> dict[str, Any]:
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {
        "gradient of parameters": torch.cat(gradients),
        # What BatchNorm has counted: further passes must not.
        **{k: b.clone() for k, b in model.named_buffers()},
    }


def _backward(loss: Tensor) -> None:
    """Every element of the loss counts differently."""
    (loss * (1 + numbers("upstream", *loss.shape, dtype=loss.dtype).abs())).sum().backward()


def _run(
    net: str,
    settings: Mapping[str, Any],
    *,
    labels: Labels = labels_for,
    dtype: torch.dtype = torch.float32,
    steps: int = 1,
    evaluating: bool = False,
    autocast: bool = False,
    **arguments: Any,
) -> dict[str, Any]:
    """Steps of ``run`` on one batch, without an optimizer."""
    model, inputs = network(net, dtype), inputs_for(net, dtype=dtype)
    target = labels(model, inputs)
    criterion = api.Criterion(settings)
    if evaluating:
        criterion.evaluate()
    found: dict[str, Any] = {}
    for step in range(steps):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = criterion.run(model, inputs, target, **arguments)
        _backward(out["loss"])
        values = {**out, "statistics": criterion.statistics(), **_gradients(model)}
        found.update({f"step {step}": values} if steps > 1 else values)
    return found


def _from_logits(
    net: str, settings: Mapping[str, Any], *, labels: Labels = labels_for
) -> dict[str, Any]:
    """The loss from logits and inputs, which get a gradient too."""
    model, inputs = network(net), inputs_for(net)
    target = labels(model, inputs)
    criterion = api.Criterion(settings)
    inputs.requires_grad_()
    out = criterion.from_logits(model(inputs), target, inputs)
    _backward(out["loss"])
    return {
        **out,
        "statistics": criterion.statistics(),
        "gradient of inputs": inputs.grad,
        **_gradients(model),
    }


def _from_hidden_layers(weights: list[float] | None) -> dict[str, Any]:
    model, inputs = network("gelu"), inputs_for("gelu").requires_grad_()
    target = labels_for(model, inputs)
    assert isinstance(model, nn.Sequential)
    hidden = model[1](model[0](inputs))
    criterion = api.Criterion(_settings("double_backward"))
    out = criterion.from_logits(model[2](hidden), target, [inputs, hidden], layer_weights=weights)
    _backward(out["loss"])
    return {**out, "statistics": criterion.statistics(), **_gradients(model)}


def _automatic(net: str) -> dict[str, Any]:
    settings = _settings("finite_difference", gradient="auto")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _run(net, settings, steps=2)
    return {**found, "warnings": len(caught)}


def _wrapped_model(mode: str) -> dict[str, Any]:
    """A model that takes more than the inputs and returns more than the logits."""
    return _run(
        "gelu",
        _settings(mode),
        call=lambda model, x: (None, model(2 * x)),
        logits_fn=lambda output: output[1],
    )


def train(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    settings: Mapping[str, Any],
    steps: int,
    after_step: Callable[[api.Criterion], None] = lambda criterion: None,
) -> list[float]:
    """Train by SGD with momentum on halves of the data; the losses."""
    criterion = api.Criterion(settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        half = slice(step % 2, None, 2)
        optimizer.zero_grad()
        loss = criterion.run(model, inputs[half], target[half])["loss"]
        loss.backward()
        optimizer.step()
        after_step(criterion)
        losses.append(float(loss.detach()))
    return losses


def _trained(net: str, mode: str) -> dict[str, Any]:
    model, inputs = network(net), inputs_for(net, count=12)
    losses = train(model, inputs, labels_for(model, inputs), _settings(mode), steps=6)
    end = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"losses": losses, "parameters": end, **dict(model.named_buffers())}


def _checked(net: str, settings: Mapping[str, Any], *, inexact: bool) -> dict[str, Any]:
    model, inputs = network(net), inputs_for(net)
    found = api.Criterion(settings).check(model, inputs, labels_for(model, inputs))
    if not inexact:  # nothing but rounding
        del found["margin_error"]
    return found


def _ignore_some(model: nn.Module, inputs: Tensor) -> Tensor:
    target = labels_for(model, inputs)
    target[1] = 99
    target[4] = 99
    return target


def _modes_on_networks() -> dict[str, Any]:
    nets = ("linear", "gelu", "relu", "dead_relu", "dropout", "convolution")
    found: dict[str, Any] = {}
    for mode in MODES:
        for net in nets:
            found[f"modes/{mode}, {net}"] = partial(_run, net, _settings(mode))
    for net in ("gelu", "once_differentiable"):
        found[f"modes/auto, {net}"] = partial(_automatic, net)
    for mode in ("double_backward", "detached", "logit_gap"):
        for net in ("gelu", "convolution"):
            found[f"from logits/{mode}, {net}"] = partial(_from_logits, net, _settings(mode))
    return found


def _differences_and_secants() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def add(name: str, net: str, **difference: Any) -> None:
        settings = _settings("finite_difference", difference={**_STEP, **difference})
        found[f"finite_difference/{name}, {net}"] = partial(_run, net, settings)

    for side in ("toward", "away", "central"):
        for unit in ("margin", "tau", "inputs", "absolute"):
            add(f"{side}, 0.3 {unit}", "gelu", side=side, step=0.3, unit=unit)
        for unit in ("margin", "absolute"):
            add(f"{side}, 0.3 {unit}", "convolution", side=side, step=0.3, unit=unit)
    add("central, at once", "gelu", side="central", deferred=False)
    add("toward, at once", "convolution", deferred=False)
    for steps in (1, 2, 4):
        secant = {**_SECANT, "steps": steps, "radius": 0.6}
        found[f"secant/{steps} steps"] = partial(_run, "relu", _settings("secant", secant=secant))
    boxed = {**_SECANT, "data_range": (-1.2, 1.2)}
    found["secant/in a box"] = partial(_unless_refused, "gelu", _settings("secant", secant=boxed))
    return found


def _unless_refused(net: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Nothing where the inputs are refused because they lie outside of the range."""
    try:
        return _run(net, settings)
    except ValueError as error:
        if "outside the stated data range" not in str(error):
            raise
        return {}


def _norms_and_regularizers() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for p in (1, 1.5, 2, math.inf):
        for mode in _WITH_PASSES:
            found[f"norms/p={p:g}, {mode}"] = partial(_run, "gelu", _settings(mode, p=p))
    names: list[Any] = [
        "ramp",
        "authors_code",
        "hinge",
        "linear",
        "softplus",
        "exponential",
        ("ramp", -0.3, 0.8),
    ]
    for regularizer in names:
        for mode in ("double_backward", "finite_difference", "logit_gap"):
            label = regularizer if isinstance(regularizer, str) else "ramp from -0.3 to 0.8"
            settings = _settings(mode, regularizer=regularizer, tau=1.3)
            found[f"regularizers/{label}, {mode}"] = partial(_run, "gelu", settings)
    return found


def _reductions_and_classes() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode in MODES:
        for reduction in ("sum", "none"):
            settings = _settings(mode, reduction=reduction)
            found[f"reductions/{reduction}, {mode}"] = partial(_run, "gelu", settings)
        found[f"reductions/normalizer, {mode}"] = partial(
            _run, "gelu", _settings(mode), normalizer=10.0
        )
    for classes in (2, "all"):
        for mode in _FIRST_ORDER:
            settings = _settings(mode, classes=classes)
            found[f"classes/{classes}, {mode}"] = partial(_run, "gelu", settings)
    return found


def _labels_and_inputs() -> dict[str, Any]:
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5])
    classes: dict[str, tuple[str, dict[str, Any], Labels]] = {
        "class weights": ("gelu", {"weight": weight}, labels_for),
        "ignored": ("gelu", {"ignore_index": 99}, _ignore_some),
        "ignored, class weights, smoothed": (
            "gelu",
            {"ignore_index": 99, "weight": weight, "label_smoothing": 0.1},
            _ignore_some,
        ),
        "smoothed": ("gelu", {"label_smoothing": 0.1}, labels_for),
        "input_std": ("gelu", {"input_std": 0.25}, labels_for),
        "input_std by channel": ("convolution", {"input_std": [0.25, 0.5]}, labels_for),
        "large eps": ("gelu", {"eps": 1.0}, labels_for),
        "soft": ("gelu", {}, soft_labels),
        "soft, class weights": ("gelu", {"weight": weight}, soft_labels),
        "soft, each its loss": ("gelu", {"reduction": "none"}, soft_labels),
        "dense": ("dense", {}, dense_labels),
        "dense, worst": ("dense", {"positions": "worst"}, dense_labels),
        "dense, ignored": (
            "dense",
            {"positions": "mean", "ignore_index": 99, "weight": weight},
            partial(dense_labels, ignored=99),
        ),
        "dense, ignored, worst": (
            "dense",
            {"positions": "worst", "ignore_index": 99},
            partial(dense_labels, ignored=99),
        ),
        "dense, each its loss": ("dense", {"reduction": "none"}, dense_labels),
        "dense, sum": ("dense", {"reduction": "sum", "label_smoothing": 0.1}, dense_labels),
        "dense, soft": ("dense", {"positions": "mean"}, soft_labels),
        "dense, soft, worst": ("dense", {"positions": "worst"}, soft_labels),
    }
    found: dict[str, Any] = {}
    for name, (net, settings, labels) in classes.items():
        for mode in ("double_backward", "finite_difference", "secant", "logit_gap"):
            given = _settings(mode, **settings)
            found[f"labels/{name}, {mode}"] = partial(_run, net, given, labels=labels)
    return found


def _parts_of_training() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode in _WITH_PASSES:
        for name, net, further in (
            ("fraction", "gelu", {"fraction": 0.5}),
            ("fraction, sum", "gelu", {"fraction": 0.5, "reduction": "sum"}),
            ("fraction", "convolution", {"fraction": 0.5}),
            ("running batchnorm", "convolution", {"batchnorm": "running"}),
            (
                "running batchnorm, fraction",
                "convolution",
                {"batchnorm": "running", "fraction": 0.5},
            ),
        ):
            settings = _settings(mode, **further)
            found[f"passes/{name}, {mode}, {net}"] = partial(_run, net, settings)
        every = _settings(mode, every=2, warmup=2)
        found[f"passes/every 2, warmup 2, {mode}"] = partial(_run, "gelu", every, steps=4)
        found[f"passes/wrapped model, {mode}"] = partial(_wrapped_model, mode)
        for net in ("gelu", "convolution"):
            found[f"training/{mode}, {net}"] = partial(_trained, net, mode)
    each = _settings("double_backward", fraction=0.5, reduction="none")
    found["passes/fraction, each its loss"] = partial(_run, "gelu", each)
    warm = _settings("double_backward", warmup=3)
    found["passes/warmup"] = partial(_run, "gelu", warm, steps=2)
    found["passes/warmup while evaluating"] = partial(_run, "gelu", warm, evaluating=True)
    found["passes/hidden layers"] = partial(_from_hidden_layers, None)
    found["passes/hidden layers, weighted"] = partial(_from_hidden_layers, [0.2, 1.5])
    found["training/logit_gap, gelu"] = partial(_trained, "gelu", "logit_gap")
    found["defaults/run"] = partial(_run, "gelu", {})
    # Norms on both sides of eps.
    found["defaults/small gradients"] = partial(
        _run, "gelu", {}, call=lambda model, x: model(7e-7 * x)
    )
    found["defaults/from logits"] = partial(_from_logits, "convolution", {})
    return found


def _checks() -> dict[str, Any]:
    long_step = {**_STEP, "step": 0.5, "unit": "absolute"}
    difference = _settings("finite_difference", difference=long_step)
    return {
        "check/double_backward": partial(
            _checked, "gelu", _settings("double_backward"), inexact=False
        ),
        "check/detached": partial(_checked, "gelu", _settings("detached"), inexact=True),
        "check/finite_difference": partial(_checked, "gelu", difference, inexact=True),
    }


def _other_types() -> dict[str, Situation]:
    found: dict[str, Situation] = {}
    for mode in MODES:
        for dtype in (torch.float64, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            compute = partial(_run, "gelu", _settings(mode), dtype=dtype)
            found[f"types/{name}, {mode}"] = Situation(compute, dtype)
        compute = partial(_run, "gelu", _settings(mode), autocast=True)
        found[f"types/autocast, {mode}"] = Situation(compute, torch.bfloat16)
    return found


def situations() -> dict[str, Situation]:
    float32 = {
        **_modes_on_networks(),
        **_differences_and_secants(),
        **_norms_and_regularizers(),
        **_reductions_and_classes(),
        **_labels_and_inputs(),
        **_parts_of_training(),
        **_checks(),
    }
    return {
        **{f"loss/{name}": Situation(compute) for name, compute in float32.items()},
        **{f"loss/{name}": situation for name, situation in _other_types().items()},
    }
