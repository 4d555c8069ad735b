"""``measure``: the margins of a data set in one call."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from margin_ext.bounds.bound import Bound, resolve_bounds
from margin_ext.bounds.first_order import (
    ClassRule,
    check_class_rule,
    first_order_margins,
)
from margin_ext.bounds.linear import is_linear
from margin_ext.data.batches import Batch, Batches, DataRange
from margin_ext.measurement.memory import samples_that_fit
from margin_ext.measurement.report import MarginReport, NormMargins
from margin_ext.measurement.resume import PartialResults, model_digest
from margin_ext.models.evaluation_mode import Model, evaluation_mode, model_device
from margin_ext.norms import dual_exponent, norm_name
from margin_ext.output.progress_bar import progress_bar
from margin_ext.threat import ThreatModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["measure", "threat_norms"]


def threat_norms(p: float | str | Sequence[float | str]) -> tuple[float, ...]:
    """One or several threat norms as numbers, checked, without repetition."""
    several = [p] if isinstance(p, (int, float, str)) else list(p)
    if not several:
        raise ValueError("p must name at least one norm")
    for one in several:
        dual_exponent(one)
    return tuple(dict.fromkeys(float(one) for one in several))


def measure(
    model: Model,
    data: Any,
    *,
    p: float | str | Sequence[float | str] = 2,
    classes: ClassRule = "all",
    signed: bool = True,
    input_std: float | Sequence[float] | Tensor | None = None,
    data_range: DataRange | None = None,
    bounds: Sequence[str | Bound] = (),
    norm_bound: float | Sequence[float] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    max_memory: int | str | None = None,
    limit: int | None = None,
    resume: str | Path | None = None,
    save_every: float = 10.0,
    progress: bool | None = None,
) -> MarginReport:
    """Measure the first-order margins of a model on data (paper.md section 2).

    The model is put into eval mode and restored. Every sample's value depends on the sample, its
    index and the seed, not on how samples are batched (up to rounding).

    Args:
        model: A module, or any function from inputs [B, ...] to logits [B, C].
        data: Tensors (inputs, target), a Dataset, a DataLoader or an iterable of batches.
        p: Threat norm or norms, at least 1; all are measured in one pass.
        classes: Classes that compete with the label: "all", "runner_up" or the top k.
        signed: From the label, negative where misclassified. False: from the predicted class, as
            the authors report; then misclassified samples count as positive.
        input_std: The loader's standard deviation(s), for margins in pixel units.
        data_range: Lowest and highest input value, in the units that the model gets. Inputs are
            checked against it.
        bounds: What to measure in addition, as objects or by name: "minimum_distance" (distance
            of an adversarial example: an upper bound), "certified" (a lower bound, for small
            networks), "sampled" (the authors' estimate). Others can be registered
            (:func:`margin_ext.bounds.register_bound`).
        norm_bound: An upper bound on the dual norm of every gap's gradient (for each p), such as
            a Lipschitz constant; saves backward passes, changes no answer.
        seed: Of the random bounds that are given by name; bound objects have their own.
        device: Where to measure; None: the model's device. The model is not moved.
        batch_size: Largest batch; None: the loader's.
        max_memory: Bytes, or such as "2GB", for activations: splits batches that need more.
        limit: Only the first ``limit`` samples.
        resume: A file (.npz) in which results are kept as they come; a run that was killed goes
            on from it.
        save_every: Seconds between two savings.
        progress: Show a bar; None: on a terminal.

    Returns:
        The report; print it, save it, or read its arrays.

    Raises:
        TypeError, ValueError: Arguments, data or the model's output do not fit; the gradient is 0
            everywhere; the file to resume from belongs to another run.
    """
    norms = threat_norms(p)
    check_class_rule(classes)
    limits = _norm_bounds(norm_bound, norms)
    threats = [ThreatModel(p=q, data_range=data_range, input_std=input_std) for q in norms]
    further = resolve_bounds(bounds, seed=seed)
    for bound in further:
        for threat in threats:
            bound.check(threat)
    place = torch.device(device) if device is not None else model_device(model)
    settings: dict[str, Any] = {
        "p": [norm_name(one) for one in norms],
        "classes": classes,
        "signed": signed,
        "input_std": _plain(input_std),
        "data_range": _plain(data_range),
        "seed": seed,
        **{bound.name: _plain(bound.settings()) for bound in further},
    }
    batches = Batches(data, device=place, batch_size=batch_size, limit=limit, data_range=data_range)
    partial = PartialResults(
        None if resume is None else Path(resume),
        {**settings, "model": model_digest(model) if resume is not None else ""},
        save_every,
    )
    bar = progress_bar(batches.total, "margins", progress)
    try:
        with evaluation_mode(model):
            for whole in batches:
                batch = partial.unmeasured(whole)
                if batch is not None:
                    for part in _within_memory(model, batch, max_memory):
                        columns = _measure_batch(
                            model,
                            part,
                            threats=threats,
                            classes=classes,
                            signed=signed,
                            norm_bound=limits,
                            bounds=further,
                        )
                        partial.append(part, columns)
                bar.update(whole.target.shape[0])
        partial.require_complete()
    finally:
        bar.close()
        partial.save()
    report = _report(
        partial,
        norms=norms,
        classes=classes,
        signed=signed,
        bounds=further,
        exact=is_linear(model),
        settings=settings,
    )
    _warn_without_gradient(report)
    return report


def _norm_bounds(
    bound: float | Sequence[float] | None, norms: Sequence[float]
) -> tuple[float, ...] | None:
    if bound is None:
        return None
    values = (float(bound),) if isinstance(bound, (int, float)) else tuple(map(float, bound))
    if len(values) != len(norms) or not all(value > 0 for value in values):
        raise ValueError(f"norm_bound must be positive, one for each of {len(norms)} norms")
    return values


def _plain(value: Any) -> Any:
    """Settings as JSON has them."""
    if isinstance(value, Tensor):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: _plain(v) for k, v in dataclasses.asdict(value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _within_memory(model: Model, batch: Batch, memory: int | str | None) -> list[Batch]:
    if memory is None:
        return [batch]
    size = samples_that_fit(model, batch.inputs, memory)
    return [
        Batch(batch.first + start, batch.inputs[start : start + size], batch.target[start:][:size])
        for start in range(0, batch.target.shape[0], size)
    ]


def _measure_batch(
    model: Model,
    batch: Batch,
    *,
    threats: Sequence[ThreatModel],
    classes: ClassRule,
    signed: bool,
    norm_bound: Sequence[float] | None,
    bounds: Sequence[Bound],
) -> dict[str, NDArray[Any]]:
    found = first_order_margins(
        model,
        batch.inputs,
        batch.target if signed else None,
        threats=threats,
        classes=classes,
        norm_bound=norm_bound,
    )
    prediction = found.logits.argmax(dim=1)
    label = batch.target if signed else prediction
    columns = {
        "target": batch.target,
        "prediction": prediction,
        "gap": found.gap,
        "runner_up": found.runner_up,
    }
    right = (found.gap > 0).nonzero().squeeze(1)
    for row, threat in enumerate(threats):
        columns[f"margin_{threat.name}"] = found.margin[row]
        columns[f"critical_{threat.name}"] = found.nearest_class[row]
        columns[f"norm_{threat.name}"] = found.norm[row]
        for bound in bounds:
            columns[f"{bound.name}_{threat.name}"] = _distances(
                bound, model, batch, label, right, threat
            )
    return {name: column.cpu().numpy() for name, column in columns.items()}


def _distances(
    bound: Bound, model: Model, batch: Batch, label: Tensor, right: Tensor, threat: ThreatModel
) -> Tensor:
    """The bound's distances [B]; 0 where the sample is already on the wrong side."""
    wide = torch.promote_types(batch.inputs.dtype, torch.float32)
    values = torch.zeros(label.shape[0], dtype=wide, device=label.device)
    if right.numel():
        indices = [batch.first + i for i in right.tolist()]
        found = bound(model, batch.inputs[right], label[right], threat=threat, indices=indices)
        values[right] = found.distance.to(wide)
    return values


def _report(
    partial: PartialResults,
    *,
    norms: Sequence[float],
    classes: ClassRule,
    signed: bool,
    bounds: Sequence[Bound],
    exact: bool,
    settings: dict[str, Any],
) -> MarginReport:
    columns = partial.columns()
    target, prediction, gap = columns["target"], columns["prediction"], columns["gap"]
    # A tie counts as misclassified: the gap to the label must be positive.
    correct = gap > 0 if signed else (prediction == target) & (gap > 0)
    return MarginReport(
        target=target,
        prediction=prediction,
        correct=np.asarray(correct),
        gap=gap,
        runner_up=columns["runner_up"],
        norms={
            one: NormMargins(
                p=one,
                margin=columns[f"margin_{norm_name(one)}"],
                critical=columns[f"critical_{norm_name(one)}"],
                norm=columns[f"norm_{norm_name(one)}"],
                bounds={bound.name: columns[f"{bound.name}_{norm_name(one)}"] for bound in bounds},
                kinds={bound.name: bound.kind for bound in bounds},
            )
            for one in norms
        },
        signed=signed,
        classes=classes,
        titles={bound.name: bound.title for bound in bounds},
        exact=exact and classes == "all",
        settings=settings,
        seconds=partial.elapsed(),
    )


def _warn_without_gradient(report: MarginReport) -> None:
    total = report.summary()
    if not report.first.norm.any():
        raise ValueError(
            f"the gradient of every logit gap with respect to the inputs is 0 on all {len(report)} "
            "samples: is the model constant, are its units dead, or does it round its input?"
        )
    if total.infinite:
        warnings.warn(
            f"{total.infinite} of {len(report)} samples have no input gradient: their first-order "
            "margin is infinite, and they are left out of the averages",
            stacklevel=3,
        )
    if not math.isfinite(total.average):
        warnings.warn("the average margin is not finite", stacklevel=3)
