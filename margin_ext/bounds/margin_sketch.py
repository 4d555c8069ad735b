"""Lower bounds on the first-order margins to all classes, from a few forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from margin_ext.bounds.logit_derivatives import (
    DIFFERENCE_STEPS,
    LogitDerivatives,
    by_differences,
    forward_mode,
)
from margin_ext.bounds.norm_sketch import NormSketch, has_sketch
from margin_ext.random_points import sample_generator

if TYPE_CHECKING:
    from margin_ext.bounds.all_classes import AllClasses
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = ["MarginSketch", "SketchedMargins"]

# Directions along which gradients are compared with the derivatives.
COMPARED = 4
# Derivatives and gradients may differ by so much: their arithmetic may be of lower precision than
# their type tells, as under autocast. The bounds are wider by the same factor.
_SLACK = 0.02
# Derivatives that are held for a group of samples, of M directions and C classes.
_HELD = 2**24
# Numbers of the inputs that are moved at once, and how many inputs at least and at most.
_MOVED, _FEWEST, _MOST = 2**22, 64, 1024


@dataclass(frozen=True)
class SketchedMargins:
    """What the derivatives along random directions say of a batch.

    Attributes:
        lower: Lower bounds on the margins [P, B, R], by rank in the order of the logits.
        products: Derivatives of the gaps along the first directions [P, 4, B, R].
        error: How far they may be off [P, 4, B].
        directions: The first directions of each norm [P, 4, ...].
        by_differences: Not by forward-mode differentiation.
        directions_used: Directions in all.
    """

    lower: Tensor
    products: Tensor
    error: Tensor
    directions: Tensor
    by_differences: bool
    directions_used: int

    def agrees(self, rows: Tensor, ranks: Tensor, grads: Tensor) -> bool:
        """Whether gradients [n, K, ...] of samples [n] and ranks [n, K] have these derivatives."""
        flat = grads.flatten(2).double()
        for p, directions in enumerate(self.directions.flatten(2).double()):
            expected = flat @ directions.T  # [n, K, 4]
            scale = (flat.square() @ directions.square().T).sqrt()
            found = self.products[p][:, rows.unsqueeze(1), ranks].permute(1, 2, 0)
            allowed = _SLACK * scale + self.error[p][:, rows].T.unsqueeze(1)
            if not bool(((found - expected).abs() <= allowed).all()):
                return False
        return True


class MarginSketch:
    """Sketches of the gradient norms of all gaps, for one measurement.

    Attributes:
        fit: Says how many inputs' derivatives can be computed at once, given the model, inputs and
            the bytes that are held for each sample; None: so many as are fast.
        why_not: Why margins are computed class by class; None: no reason has been met yet.
        by_differences: Finite differences stand in for forward-mode differentiation.
        told: What a user should know of it; None: nothing.
    """

    fit: Callable[[Model, Tensor, int], int] | None = None
    why_not: str | None = None
    by_differences = False
    told: str | None = None

    def __init__(
        self, options: AllClasses, threats: Sequence[ThreatModel], *, seed: int = 0
    ) -> None:
        """Nothing is computed yet.

        Args:
            options: How many directions, and so on.
            threats: The norms and units.
            seed: Seed of the directions. All samples share them.
        """
        self.options = options
        self.threats = threats
        self.seed = seed
        self._rows: int | None = None
        if options.derivatives == "differences":
            self.by_differences = True
            self.told = "margins to all classes rest on finite differences, as asked for"

    def serves(self, classes: int) -> bool:
        """Whether margins to so many classes are searched by sketches."""
        if not self.options.sketched(classes, len(self.threats)):
            self.why_not = f"{classes} classes are computed faster one by one"
        none = [threat.name for threat in self.threats if not has_sketch(threat.q)]
        if none and self.why_not is None:
            self._refuse(f"there is no sketch for {', '.join(none)} (for p >= 2 there is one)")
        return self.why_not is None

    def contradicted(self) -> None:
        """Take note that gradients do not have the derivatives that were found."""
        self._refuse(
            "its gradients are not the derivatives of its logits (a layer with a backward pass or "
            "a forward mode of its own?)"
        )

    def _refuse(self, reason: str) -> None:
        self.why_not = reason
        self.told = f"every class took a backward pass of its own: {reason}"

    def margins(
        self,
        model: Model,
        inputs: Tensor,
        logits: Tensor,
        label: Tensor,
        order: Tensor,
        progress: Callable[[float], None],
    ) -> SketchedMargins | None:
        """Bound the margins of a batch; None where there is no sketch, and ``why_not`` says why.

        Args:
            model: In eval mode.
            inputs: [B, ...].
            logits: [B, C].
            label: [B].
            order: The other classes by rank [B, R].
            progress: Told what part of the work is done, from 0 to 1.
        """
        if not {inputs.dtype, logits.dtype} <= DIFFERENCE_STEPS.keys():
            kinds = f"{inputs.dtype} inputs and {logits.dtype} logits"
            self._refuse(f"sketches need float32 or float64, and the model has {kinds}")
            return None
        derivatives = self.options.directions * logits.shape[1]
        if self._rows is None:
            fast = min(max(_MOVED // inputs[0].numel(), _FEWEST), _MOST)
            fitting = fast if self.fit is None else self.fit(model, inputs, 16 * derivatives)
            self._rows = min(fast, fitting)
        rows = self._rows
        group = min(inputs.shape[0], rows, max(1, _HELD // derivatives))
        parts = []
        for start in range(0, inputs.shape[0], group):
            batch = _Group(
                model, *(t[start : start + group] for t in (inputs, logits, label, order))
            )
            within = partial(_within, progress, start / len(inputs), batch.size / len(inputs))
            part = self._group(batch, rows, within)
            if part is None:
                return None
            parts.append(part)
        return replace(
            parts[0],
            lower=torch.cat([part.lower for part in parts], dim=1),
            products=torch.cat([part.products for part in parts], dim=2),
            error=torch.cat([part.error for part in parts], dim=2),
        )

    def _group(
        self, batch: _Group, rows: int, progress: Callable[[float], None]
    ) -> SketchedMargins | None:
        """Bound the margins of some samples of the batch."""
        count = self.options.directions
        together = min(max(1, rows // batch.size), count)
        lower, products, errors, kept = [], [], [], []
        for number, threat in enumerate(self.threats):
            sketch = NormSketch(threat.q)
            found, error = [], []
            for start in range(0, count, together):
                numbers = range(start, min(start + together, count))
                directions = self._directions(sketch, threat, numbers, batch.inputs)
                derivatives = self._derivatives(batch, directions, start)
                if derivatives is None:
                    return None
                found.append(batch.of_gaps(derivatives.values))
                error.append(derivatives.error)
                if start < COMPARED:
                    kept.append(directions[: COMPARED - start])
                progress((number + numbers.stop / count) / len(self.threats))
            of_gaps, off = torch.cat(found), torch.cat(error)
            if self.by_differences:
                off = off + off[:COMPARED].amax(dim=0)
            norm = sketch.interval(of_gaps, off.unsqueeze(2), self.options.failure)
            slowest = norm.lower * (1 - _SLACK)
            steepest = norm.upper * (1 + _SLACK)
            gaps = batch.of_gaps(batch.logits.unsqueeze(0))[0].double()
            lower.append(torch.where(gaps < 0, gaps / slowest, gaps / steepest).nan_to_num(0.0))
            products.append(of_gaps[:COMPARED].double())
            errors.append(off[:COMPARED].double())
        shape = (len(self.threats), COMPARED, *batch.inputs.shape[1:])
        return SketchedMargins(
            lower=torch.stack(lower),
            products=torch.stack(products),
            error=torch.stack(errors),
            directions=torch.cat(kept).reshape(shape),
            by_differences=self.by_differences,
            directions_used=count * len(self.threats),
        )

    def _directions(
        self, sketch: NormSketch, threat: ThreatModel, numbers: range, inputs: Tensor
    ) -> Tensor:
        """Random directions [c, ...] in the units that the model gets."""
        size, cpu = inputs[0].numel(), torch.device("cpu")
        stream = f"all classes, q = {sketch.q:g}"
        drawn = [sketch.draw(size, sample_generator(self.seed, stream, n, cpu)) for n in numbers]
        shaped = torch.stack(drawn).reshape(-1, *inputs.shape[1:]).to(inputs)
        return threat.in_input_units(shaped)

    def _derivatives(
        self, batch: _Group, directions: Tensor, start: int
    ) -> LogitDerivatives | None:
        """Derivatives of the logits; None where there are none, and ``why_not`` says why."""
        if not self.by_differences:
            try:
                return forward_mode(batch.model, batch.inputs, directions)
            except torch.OutOfMemoryError:
                raise
            # Whatever a layer raises that has no forward mode.
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                if self.options.derivatives == "forward_mode":
                    self._refuse(f"forward-mode differentiation fails ({reason})")
                    return None
                self.by_differences = True
                self.told = (
                    "margins to all classes rest on finite differences, because forward-mode "
                    f"differentiation fails ({reason})"
                )
        if any(threat.q != 2 for threat in self.threats):
            self._refuse("without forward-mode differentiation only p = 2 has a sketch")
            return None
        return by_differences(
            batch.model, batch.inputs, batch.logits, directions, both=start < COMPARED
        )


def _within(progress: Callable[[float], None], start: float, share: float, done: float) -> None:
    """Tell of the progress within a part of the whole."""
    progress(start + share * done)


class _Group:
    """Some samples of a batch, with the classes other than the label in the order of the logits."""

    def __init__(
        self, model: Model, inputs: Tensor, logits: Tensor, label: Tensor, order: Tensor
    ) -> None:
        self.model, self.inputs, self.logits = model, inputs, logits
        self.label, self.order = label, order
        self.size = inputs.shape[0]

    def of_gaps(self, of_logits: Tensor) -> Tensor:
        """What belongs to the gaps [c, B, R], from what belongs to the logits [c, B, C]."""
        count = of_logits.shape[0]
        label = self.label.reshape(1, -1, 1).expand(count, -1, 1)
        return of_logits.gather(2, label) - of_logits.gather(2, self.order.expand(count, -1, -1))
