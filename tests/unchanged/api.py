"""Every call into the package. When an interface changes, change this file and no other.

The situations speak in words of their own, which are those of version 0.1.0; here they become
arguments, and results become plain tensors and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import margin_ext
from margin_ext import functional, reference
from margin_ext.attacks import PGD
from margin_ext.bounds import Certified, MinimumDistance, Sampled
from margin_ext.threat import ThreatModel

__all__ = [
    "OPS",
    "Criterion",
    "attacked",
    "environment",
    "linear_margin",
    "measured",
    "monitor_history",
    "op",
    "orthogonality_penalty",
    "regularizer",
    "robustness",
    "version",
]

# Who computes the ops.
OPS = ("compiled", "reference")

# What a vector of statistics holds. `gradient_scale` is the kernels' own bookkeeping.
_STATISTICS = (
    "minimum_margin",
    "average_margin",
    "average_gap",
    "average_gradient_norm",
    "accuracy",
    "cross_entropy",
    "regularizer",
    "count",
)


# Settings of bounds that have other names since 0.1.0, and quantities of a report.
_NEW_SETTINGS = {"box": "in_range", "clip": "in_range"}
_NEW_OPTIONS = {"positions": "aggregation", "critical": "nearest"}
_NEW_SCHEMES = {"toward": "backward", "away": "forward", "central": "central"}
_OLD_RESULTS = {"fraction": "share", "nearest": "critical"}
# How the nearest class was found is told since 0.2.0.
_NEW_COLUMNS = ("gradients", "directions", "by_differences", "nearest_rank")
_OLD_NAMES = {"minimum_distance": "attack", "nearest_class": "critical"}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def version() -> str:
    return margin_ext.__version__


def environment() -> dict[str, Any]:
    """Whether the compiled library serves, and with what instructions."""
    info = margin_ext.backend_info()
    return {
        "library": info.cpu_library is not None,
        "instruction_set": info.cpu_instruction_set,
    }


def _statistics_of(statistics: margin_ext.BatchStatistics) -> Tensor:
    return torch.stack([statistics[name] for name in _STATISTICS])


def regularizer(kind: str, *values: float) -> Any:
    """One with settings of its own, such as ("ramp", lowest, highest)."""
    return getattr(margin_ext.Regularizer, kind)(*values)


def op(by: str, name: str, *tensors: Tensor | None, **settings: Any) -> dict[str, Any]:
    """The results of an op by name; settings are its arguments in version 0.1.0."""
    given = _renamed(settings, _NEW_OPTIONS)
    if isinstance(given.get("regularizer"), tuple):
        given["regularizer"] = regularizer(*given["regularizer"])
    found = getattr(functional if by == "compiled" else reference, name)(*tensors, **given)
    if isinstance(found, Tensor):
        return {"result": found}
    results = found._asdict()
    if name in ("sample_gap", "soft_gap"):
        results = _renamed(results, _OLD_RESULTS)
    if "statistics" in results:
        results["statistics"] = _statistics_of(results["statistics"])
    return results


class Criterion:
    """The loss of a training loop, with settings in the words of the situations.

    Settings are the arguments of AverageMarginLoss in version 0.1.0; ``difference`` and ``secant``
    are mappings, and a ``regularizer`` may be a tuple for :func:`regularizer`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        given = _renamed(settings, _NEW_OPTIONS)
        words = dict(given.pop("difference", {}))
        if "side" in words:
            words["scheme"] = _NEW_SCHEMES[words.pop("side")]
        difference = margin_ext.FiniteDifference(**words)
        modes = {"finite_difference": difference, "auto": margin_ext.Auto(difference)}
        if given.get("gradient") in modes:
            given["gradient"] = modes[given["gradient"]]
        secant = margin_ext.Secant(**given.pop("secant", {}))
        if given.get("margin") == "secant":
            given["margin"] = secant
        if given.get("regularizer") == "authors_code":
            given["regularizer"] = "negative_ramp"
        if isinstance(given.get("regularizer"), tuple):
            given["regularizer"] = regularizer(*given["regularizer"])
        self.loss = margin_ext.AverageMarginLoss(**given)

    def evaluate(self) -> None:
        """Stop counting training steps."""
        self.loss.eval()

    def from_logits(
        self,
        logits: Tensor,
        target: Tensor,
        inputs: Tensor | Sequence[Tensor] | None,
        *,
        layer_weights: Sequence[float] | None = None,
    ) -> dict[str, Tensor]:
        return {"loss": self.loss(logits, target, inputs, layer_weights=layer_weights)}

    def run(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        *,
        normalizer: float | None = None,
        call: Callable[[Any, Tensor], Any] | None = None,
        logits_fn: Callable[[Any], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        out = self.loss.run(
            model, inputs, target, call=call, logits_fn=logits_fn, normalizer=normalizer
        )
        return {"loss": out.loss, "margin": out.margin, "gap": out.gap, "norm": out.norm}

    def statistics(self) -> Tensor:
        """Those of the last batch, in the order written above."""
        assert self.loss.statistics is not None
        return _statistics_of(self.loss.statistics)

    def check(self, model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, Any]:
        found = self.loss.check(model, inputs, target, directions=4, seed=3)
        return {"verdict": found.verdict, "margin_error": found.margin_error}


def linear_margin(weight: Tensor, bias: Tensor, inputs: Tensor, target: Tensor, p: float) -> Tensor:
    return margin_ext.linear_margin(weight, bias, inputs, target, p=p)


def orthogonality_penalty(model: nn.Module) -> Tensor:
    return margin_ext.orthogonality_penalty(model)


def measured(
    model: nn.Module, inputs: Tensor, target: Tensor, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The report of ``measure``, without what time it took and what was asked for.

    The totals of a quantity are one vector, in the order in which the report has them. Settings
    are its arguments in version 0.1.0; those of the bounds are mappings.
    """
    given = dict(settings)
    seed = given.pop("seed")
    kinds = {
        "attack": (MinimumDistance, given.pop("attack", {}), {}),
        "sampled": (Sampled, given.pop("sampling", {}), {"seed": seed}),
        "certified": (Certified, given.pop("certification", {}), {}),
    }
    if "attack" in given["bounds"]:
        # The search of 0.1.0 had no random starts; its radius_change and first step are constants
        # now, and searches toward classes start from what was found. Both have 25 steps here.
        words = kinds["attack"][1]
        kept = {k: v for k, v in words.items() if k not in {"radius_change", "step"}}
        kinds["attack"] = (MinimumDistance, kept, {"seed": seed})
    bounds = []
    for name in given.pop("bounds"):
        kind, words, further = kinds[name]
        bounds.append(kind(**_renamed(words, _NEW_SETTINGS), **further))
    given["bounds"] = bounds
    report = margin_ext.measure(model, (inputs, target), progress=False, **given)
    found = report.to_dict(samples=False)
    del found["seconds"], found["settings"]
    for name, quantities in found["norms"].items():
        norm = found["norms"][name] = _renamed(quantities, _OLD_NAMES)
        for quantity, totals in norm.items():
            new = {"quantiles", "misclassified"}
            quantiles = totals["quantiles"]
            if totals["infinite"]:
                # They were those of the finite values; now infinite ones count.
                values = report[name[1:]]["minimum_distance" if quantity == "attack" else quantity]
                values = values[np.isfinite(values)].astype(np.float64)
                quantiles = {q: float(np.quantile(values, float(q))) for q in quantiles}
            numbers = {k: v for k, v in totals.items() if k not in new} | quantiles
            norm[quantity] = list(numbers.values())
    columns = {
        "_".join(_OLD_NAMES.get(part, part) for part in name.rsplit("_", 1)): column
        for name, column in report.columns().items()
        if name.rpartition("_l")[0] not in _NEW_COLUMNS and name not in _NEW_COLUMNS
    }
    return {**found, "samples": columns}


def robustness(
    model: nn.Module, inputs: Tensor, target: Tensor, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The report of ``robust_accuracy`` and each sample's part in it, without what was asked for.

    Settings are its arguments in version 0.1.0. The findings are counted: their words may change.
    """
    given = dict(settings)
    losses = given.pop("losses")
    seed = given["seed"]
    plain = _pgd(given)
    attacks = [replace(plain, loss=loss) for loss in losses]
    report = margin_ext.robust_accuracy(
        model, (inputs, target), progress=False, attacks=attacks, seed=seed, **given
    )
    found = {k: v for k, v in report.to_dict().items() if k != "settings"}
    # Columns of other instruments are new, and "worst" counts what the diagnosis found.
    if found["diagnosis"] is not None:
        # The other signs of 0.1.0 had units, or depended on the first batch: the diagnosis rests on
        # others now.
        judged = found["diagnosis"]
        found["diagnosis"] = {
            "cross_entropy_excess": judged["cross_entropy_excess"],
            "random_excess": judged["random_excess"],
            "cross_entropy_masked": judged["cross_entropy_masked"],
            "gap_masked": judged["gap_masked"],
            "findings": len(judged["findings"]),
        }
    found["samples"] = {
        "correct": report.correct,
        "random": report.random,
        **{name: report.robust(name) for name in report.distance},
    }
    return found


def attacked(
    model: nn.Module, inputs: Tensor, target: Tensor, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The points that projected gradient descent ends at, and whether samples held.

    Settings are those of ``pgd`` and PGDSettings in version 0.1.0, in one mapping.
    """
    given = dict(settings)
    eps = given.pop("eps")
    found = _pgd(given)(model, inputs, target, eps, threat=_threat(given))
    return {"held": found.robust, "points": found.point}


def _pgd(given: dict[str, Any], **further: Any) -> PGD:
    """Take the attack's settings out of the mapping."""
    names = ("loss", "steps", "restarts", "relative_step", "random_start", "norm_floor", "seed")
    return PGD(**{name: given.pop(name) for name in names if name in given}, **further)


def _threat(given: Mapping[str, Any]) -> ThreatModel:
    return ThreatModel(**given)


def monitor_history(
    splits: Mapping[str, tuple[Tensor, Tensor]],
    settings: Mapping[str, Any],
    train: Callable[[Any, Callable[[Criterion], None]], Any],
    model: nn.Module,
    epochs: int,
) -> list[dict[str, Any]]:
    """The history of a MarginMonitor.

    Args:
        splits: What it measures.
        settings: Its arguments in version 0.1.0.
        train: Trains the model for an epoch; it is given the model and what to call after a step.
        model: What is trained.
        epochs: How many.
    """
    monitor = margin_ext.MarginMonitor(splits, progress=False, **settings)
    monitor.epoch(model, 0)
    for epoch in range(epochs):
        train(model, lambda criterion: monitor.step(criterion.loss.statistics))
        monitor.epoch(model, epoch + 1, {"train": {"loss": 0.5}})
    new = {"without_gradient", "misclassified"}
    return [{k: v for k, v in record.items() if k not in new} for record in monitor.history]
