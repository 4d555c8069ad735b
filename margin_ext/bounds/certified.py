"""Certified lower bounds on the margin of small networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.bounds.branch_and_bound import (
    BRANCHES_TOGETHER,
    Limit,
    branch_and_bound,
    require_splittable,
)
from margin_ext.bounds.certified_radius import Gaps, certified_radius
from margin_ext.bounds.minimum_distance import MinimumDistance
from margin_ext.bounds.relaxation import Relaxation
from margin_ext.bounds.relaxed_network import relaxed_network
from margin_ext.bounds.rows_that_fit import rows_that_fit
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.in_parts import memory_limit
from margin_ext.modules_behind import modules_behind
from margin_ext.output.progress_bar import progress_bar
from margin_ext.threat import ThreatModel

__all__ = ["Certified"]

# The logits' rounding that shows at the sample, times this, is taken off the bounds in the whole
# ball. It matters only where products are not rounded as IEEE 754 says.
_ROUNDINGS = 4.0

_TOO_NARROW = (
    "certified bounds are for float32 and float64: a narrower type's rounding can exceed them. "
    "Measure model.float() on inputs.float()"
)


@register_bound
@dataclass(frozen=True, kw_only=True)
class Certified:
    """A radius within which every input is classified as the label.

    Exact for linear models; for networks the looser the deeper and wider they are, unless
    ``branches`` are looked at. The data range is not used: the whole ball is certified.

    Rounding does not break the bound. It is computed in float64, and all rounding errors of that
    and of the model's own float32 or float64 are bounded and taken off, for sums in any order. So
    it holds for the network in exact arithmetic and as it runs; not covered is arithmetic of
    fewer digits (TF32) and convolutions by transforms (Winograd, FFT).

    Attributes:
        bisections: The largest radius that the linear bounds certify is found up to a fraction of
            2 ** -bisections.
        rows: Linear forms carried backward at a time, fewer where ``max_memory`` says so.
        slopes: Gradient steps that choose the lines below the activations; 0: the usual ones.
        branches: Branches of branch and bound a sample, for small networks with ReLU: the bound
            approaches the exact distance. 0: none.
        seconds: Time limit of that, a sample. Where it ends the search, results depend on the
            machine.
        progress: Show a bar over the samples of a batch meanwhile; None: on a terminal.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> found = Certified(bisections=20)(model, x, label, threat=ThreatModel(p=2))
        >>> round(float(found.distance), 3)  # (3 - 1) / sqrt(2)
        1.414
    """

    bisections: int = 10
    rows: int = 4096
    slopes: int = 20
    branches: int = 0
    seconds: float = 60.0
    progress: bool | None = None

    name: ClassVar[str] = "certified"
    title: ClassVar[str] = "certified (lower bound)"
    kind: ClassVar[BoundKind] = "lower"

    def __post_init__(self) -> None:
        if self.bisections < 1 or self.rows < 1:
            raise ValueError("bisections and rows must be at least 1")
        if self.slopes < 0 or self.branches < 0 or not self.seconds > 0:
            raise ValueError("slopes and branches must not be negative, seconds must be positive")

    def check(self, threat: ThreatModel) -> None:
        """Any norm will do."""

    def settings(self) -> dict[str, Any]:
        """Everything that the radii depend on."""
        settings = dataclasses.asdict(self)
        del settings["progress"]
        return settings

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> BoundResult:
        """Certify a radius for each sample.

        Args:
            model: A Sequential (nested ones too) of the layers named in the error, in eval mode.
            inputs: [B, ...].
            label: [B].
            threat: The norm; radii are in pixel units with its input_std.
            indices: Not used: nothing is random that the radii depend on.

        Raises:
            TypeError: The model has a layer of another kind, hooks or a patched forward, or it
                computes in a type narrower than float32.
        """
        stages = relaxed_network(model, inputs)
        parameters = [p for module in modules_behind(model) for p in module.parameters()]
        unit = max(torch.finfo(tensor.dtype).eps / 2 for tensor in (inputs, *parameters))
        if unit > torch.finfo(torch.float32).eps / 2:
            raise TypeError(_TOO_NARROW)
        if not inputs.shape[0]:
            return BoundResult(inputs.new_empty(0))
        farthest = [math.inf] * len(inputs)
        if self.branches:
            require_splittable(stages)
            farthest = _farthest(model, inputs, label, threat)
        bar = progress_bar(len(inputs), "certifying", self.progress if self.branches else False)
        radii = []
        try:
            with torch.no_grad():
                logits = checked_logits(model, inputs).double()
                together = BRANCHES_TOGETHER if self.branches else logits.shape[1] - 1
                rows = rows_that_fit(stages, self.rows, together, memory_limit(model))
                norms = None
                wide = inputs.double()
                for row, (x, own) in enumerate(zip(wide.split(1), logits.split(1), strict=True)):
                    relaxation = Relaxation(
                        stages, x, threat, rows=rows, unit=unit, first_norms=norms
                    )
                    norms = relaxation.first_norms
                    observed = float((relaxation.logits(x) - own).abs().max())
                    gaps = Gaps(relaxation, int(label[row]), _ROUNDINGS * observed)
                    radii.append(self._radius(relaxation, gaps, farthest[row]))
                    bar.update(1)
        finally:
            bar.close()
        found = torch.tensor(radii, dtype=torch.float64, device=inputs.device)
        rounded = found.to(inputs.dtype)
        # Rounding to the inputs' type makes no radius larger.
        smaller = torch.nextafter(rounded, torch.zeros_like(rounded))
        return BoundResult(torch.where(rounded > found, smaller, rounded))

    def _radius(self, relaxation: Relaxation, gaps: Gaps, farthest: float) -> float:
        radius = certified_radius(
            relaxation, gaps, tolerance=2.0**-self.bisections, slopes=self.slopes
        )
        if self.branches and radius > 0:
            limit = Limit(self.branches, self.seconds)
            radius = branch_and_bound(relaxation, gaps, radius, farthest, limit)
        return radius


def _farthest(model: Model, inputs: Tensor, label: Tensor, threat: ThreatModel) -> list[float]:
    """Distances of adversarial examples: a search for larger certificates is in vain."""
    if threat.p not in (1.0, 2.0, math.inf):
        return [math.inf] * len(inputs)
    with torch.enable_grad():
        found = MinimumDistance(in_range=False)(model, inputs, label, threat=threat)
    return [float(distance) for distance in found.distance]
