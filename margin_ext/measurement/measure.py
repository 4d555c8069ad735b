"""``measure``: the margins of a data set in one call."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margin_ext.bounds.all_classes import AllClasses
from margin_ext.bounds.bound import Bound, resolve_bounds
from margin_ext.bounds.first_order import (
    ClassRule,
    FirstOrderMargins,
    FirstOrderOptions,
    first_order_margins,
)
from margin_ext.bounds.linear import is_linear
from margin_ext.bounds.margin_sketch import MarginSketch
from margin_ext.data.batches import Batch, Batches
from margin_ext.data.reading import BatchFunction, Reading
from margin_ext.measurement.collect import Collected, Place, collect
from margin_ext.measurement.memory import parse_memory, rows_that_fit, samples_that_fit
from margin_ext.measurement.report import (
    NORM_COLUMNS,
    SAMPLE_COLUMNS,
    MarginReport,
    NormMargins,
    norm_columns,
)
from margin_ext.measurement.split_models import whole_model
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.in_parts import InParts
from margin_ext.models.logits_function import logits_function
from margin_ext.norms import dual_exponent
from margin_ext.plain_numbers import real_numbers, whole_number
from margin_ext.ranks import ALONE, Ranks
from margin_ext.threat import DataRange, ThreatModel
from margin_ext.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["measure", "threat_norms"]

# Bytes for each class and norm of a sample that a search among all classes holds.
_HELD = 96


def threat_norms(p: float | str | Sequence[float | str]) -> tuple[float, ...]:
    """One or several threat norms as numbers, checked, without repetition."""
    several = real_numbers("p", p, texts=True)
    if not several:
        raise ValueError("p must name at least one norm")
    for one in several:
        dual_exponent(one)
    return tuple(dict.fromkeys(several))


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
    call: Callable[[Any, Tensor], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    batch_fn: BatchFunction | None = None,
    ranks: Ranks = ALONE,
) -> MarginReport:
    """Measure the first-order margins of a model on data.

    The model is put into eval mode and restored. Every sample's value depends on the sample, its
    index and the seed, not on how samples are batched (up to rounding).

    Args:
        model: A module, or any function from inputs [B, ...] to logits [B, C].
        data: Tensors (inputs, target), a Dataset, a DataLoader or an iterable of batches.
        p: Threat norm or norms, at least 1; all are measured in one pass.
        classes: Classes that compete with the label: "all", "runner_up" or the top k. "all" is
            :class:`margin_ext.bounds.AllClasses`: of many classes most are shown by random
            directions to be farther than the nearest, with probability 1 - 1e-6 for each sample,
            and the rest are computed.
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
        seed: Seed of the random bounds that are given by name; bound objects have their own.
        device: Where to measure; None: the model's device. The model is not moved.
        batch_size: Largest batch; None: the loader's.
        max_memory: Bytes, or such as "2GB", for activations: splits batches that need more.
        limit: Only the first ``limit`` samples.
        resume: A file (.npz) in which results are kept as they come; a run that was killed goes
            on from it, and :func:`margin_ext.measurement.read_partial_results` reads it meanwhile.
        save_every: Seconds between two savings; saving takes at most 2 % of the time.
        progress: Show a bar; None: on a terminal.
        call: How to call the model, where it is not ``model(inputs)``.
        logits_fn: Takes the logits from what the model returns, such as
            ``lambda output: output.logits``.
        batch_fn: Takes (inputs, target) from what the data yield, where that is something else.
        ranks: The processes that share the data, as ``margin_ext.distributed.all_ranks()``; each
            of them has to make this call, and gets the same report as one process. By default
            this process measures all that it is given, whatever others do.

    Returns:
        The report; print it, save it, or read its arrays.

    Raises:
        TypeError, ValueError: Arguments, data or the model's output do not fit; the gradient is 0
            everywhere; the file to resume from belongs to another run; ranks were not asked for the
            same.
        RankFailedError: Another rank failed.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> report = measure(model, (torch.tensor([[3.0, 1.0]]), torch.tensor([0])))
        >>> round(report.average_margin, 3), report.exact  # (3 - 1) / sqrt(2)
        (1.414, True)
    """
    with Together(ranks) as meeting:
        norms = threat_norms(p)
        if not isinstance(classes, (str, AllClasses)):
            classes = whole_number("classes", classes)
        seed = whole_number("seed", seed, least=0)
        function = logits_function(model, call, logits_fn)
        threats = [ThreatModel(p=q, data_range=data_range, input_std=input_std) for q in norms]
        gradients = None if norm_bound is None else real_numbers("norm_bound", norm_bound)
        options = FirstOrderOptions(threats, classes, gradients)
        measurement = _Measurement(
            function,
            dataclasses.replace(options, sketch=_sketch(options, seed)),
            signed=bool(signed),
            bounds=resolve_bounds(bounds or (), seed=seed),
            seed=seed,
            max_memory=max_memory,
        )
        measurement.check()
        batches = Batches(data, Reading(batch_size, limit, data_range, batch_fn), ranks)
        place = Place(
            device, "margins", progress, None if resume is None else Path(resume), save_every
        )
        with whole_model(function, meeting):
            found = collect(measurement, batches, place, meeting)
    report = measurement.report(found)
    _warn_without_gradient(report, ranks)
    _warn_of_search(measurement.sketch)
    return report


@dataclass(kw_only=True)
class _Measurement:
    """What is measured of every sample."""

    model: Model = field(kw_only=False)
    options: FirstOrderOptions = field(kw_only=False)
    signed: bool
    bounds: Sequence[Bound]
    seed: int
    max_memory: int | str | None = None
    # Known once the model is in evaluation mode.
    linear: bool = False

    @property
    def threats(self) -> Sequence[ThreatModel]:
        """The threat models, one for each norm."""
        return self.options.threats

    @property
    def sketch(self) -> MarginSketch | None:
        """How all classes are looked at; None where not all of them are."""
        return self.options.sketch

    def check(self) -> None:
        """Raise where a bound does not exist for a threat model."""
        for bound in self.bounds:
            for threat in self.threats:
                bound.check(threat)

    def settings(self) -> dict[str, Any]:
        """Everything that the numbers depend on but the model and the data, as plain values."""
        threat = self.threats[0].settings()
        return {
            "p": [one.name for one in self.threats],
            **self._class_settings(),
            "signed": self.signed,
            "input_std": threat["input_std"],
            "data_range": threat["data_range"],
            "seed": self.seed,
            **{bound.name: bound.settings() for bound in self.bounds},
        }

    def _class_settings(self) -> dict[str, Any]:
        if self.sketch is None:
            return {"classes": self.options.classes}
        return {"classes": "all", "search": self.sketch.options.settings()}

    def begin(self) -> None:
        """See whether the model, now in evaluation mode, is linear."""
        self.linear = is_linear(self.model)

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch in parts that fit into the memory."""
        if self.max_memory is None:
            return [batch]
        if not isinstance(self.model, InParts):
            # The first batch decides. What bounds hold in addition they fit into the memory.
            # Of a sketch a few numbers for each class are held until the margins are found.
            held = 0 if self.sketch is None else _HELD * len(self.threats)
            size = samples_that_fit(self.model, batch.inputs, self.max_memory, held)
            if self.sketch is not None:
                self.sketch.fit = functools.partial(rows_that_fit, memory=self.max_memory)
            self.model = InParts(self.model, size, parse_memory(self.max_memory))
        size = self.model.size
        return [batch.part(start, size) for start in range(0, batch.target.shape[0], size)]

    def seen(self, batch: Batch, columns: Mapping[str, NDArray[Any]]) -> None:
        """Nothing is needed beyond the columns."""

    def first_order(
        self, batch: Batch, options: FirstOrderOptions, progress: Callable[[float], None]
    ) -> FirstOrderMargins:
        """First-order margins of the batch's samples."""
        label = batch.target if self.signed else None
        return first_order_margins(self.model, batch.inputs, label, options, progress)

    def fingerprint(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What tells this model from others on a few samples."""
        found = self.first_order(
            batch, dataclasses.replace(self.options, classes="runner_up"), _untold
        )
        values = {
            "logits": found.logits,
            "first-order margins": found.margin.T,
            "gradient norms": found.norm.T,
        }
        return {name: value.double().cpu().numpy() for name, value in values.items()}

    def columns(self, batch: Batch, progress: Callable[[float], None]) -> dict[str, NDArray[Any]]:
        """Every value of the batch's samples by its column in the report."""
        share = 1 / (1 + len(self.threats) * len(self.bounds))
        found = self.first_order(batch, self.options, lambda done: progress(share * done))
        prediction = found.logits.argmax(dim=1)
        label = batch.target if self.signed else prediction
        right = found.gap > 0
        # A tie counts as misclassified: the gap must be positive.
        correct = right & (label == batch.target)
        own_values = (batch.target, prediction, correct, found.gap, found.runner_up)
        search = (
            found.gradients,
            torch.full_like(label, found.directions),
            torch.full_like(correct, found.by_differences),
        )
        columns = dict(zip(SAMPLE_COLUMNS, (*own_values, *search), strict=True))
        for row, threat in enumerate(self.threats):
            of_class = (found.margin, found.nearest_class, found.nearest_rank, found.norm)
            own = [values[row] for values in of_class]
            of_norm = dict(zip(NORM_COLUMNS, own, strict=True))
            for bound in self.bounds:
                of_norm[bound.name] = self._distances(bound, batch, label, right, threat)
            columns.update(norm_columns(threat.p, of_norm))
        return {name: column.cpu().numpy() for name, column in columns.items()}

    def _distances(
        self, bound: Bound, batch: Batch, label: Tensor, right: Tensor, threat: ThreatModel
    ) -> Tensor:
        """The bound's distances [B]; 0 where the sample is already on the wrong side."""
        wide = torch.promote_types(batch.inputs.dtype, torch.float32)
        values = torch.zeros(label.shape[0], dtype=wide, device=label.device)
        chosen = right.nonzero().squeeze(1)
        if chosen.numel():
            indices = [batch.indices[i] for i in chosen.tolist()]
            inputs = batch.inputs[chosen]
            found = bound(self.model, inputs, label[chosen], threat=threat, indices=indices)
            values[chosen] = found.distance.to(wide)
        return values

    def report(self, found: Collected) -> MarginReport:
        """The report of everything measured."""
        columns, settings = found.columns, self.settings()
        kinds = {bound.name: bound.kind for bound in self.bounds}
        return MarginReport(
            **{name: columns[name] for name in SAMPLE_COLUMNS},
            norms={one.p: NormMargins.of(one.p, columns, kinds) for one in self.threats},
            signed=self.signed,
            classes=settings["classes"],
            titles={bound.name: bound.title for bound in self.bounds},
            exact=self.linear and settings["classes"] == "all",
            settings=settings,
            seconds=found.seconds,
        )


def _untold(_: float) -> None:
    """Progress that nobody looks at."""


def _sketch(options: FirstOrderOptions, seed: int) -> MarginSketch | None:
    """How all classes are looked at; None where not all of them are."""
    classes = AllClasses() if options.classes == "all" else options.classes
    return (
        MarginSketch(classes, options.threats, seed=seed)
        if isinstance(classes, AllClasses)
        else None
    )


def _warn_of_search(sketch: MarginSketch | None) -> None:
    if sketch is not None and sketch.told is not None:
        warnings.warn(sketch.told, stacklevel=3)


def _warn_without_gradient(report: MarginReport, ranks: Ranks) -> None:
    total = report.summary()
    if not report.first.norm.any():
        raise ValueError(
            f"the gradient of every logit gap with respect to the inputs is 0 on all {len(report)} "
            "samples: is the model constant, are its units dead, or does it round its input?"
        )
    # All ranks have the same report: one of them tells.
    if total.infinite and ranks.is_main:
        warnings.warn(
            f"{total.infinite} of {len(report)} samples have no input gradient: their first-order "
            "margin is infinite, and they are left out of the averages",
            stacklevel=3,
        )
    if not math.isfinite(total.average) and ranks.is_main:
        warnings.warn("the average margin is not finite", stacklevel=3)
