"""The sampled margin of Wu and Yu (arXiv 1907.11780): an estimate, not a bound.

For the label c and every competitor j: L_j = largest dual norm of grad(z_c - z_j) over points drawn
uniformly in the l_p ball of radius R; the estimate is min_j min(R, (z_c - z_j)(x) / L_j). The true
local Lipschitz constant is at least L_j, so the estimate is at least what it estimates.

All competitors share one set of points, so a point costs one forward pass and one backward pass a
competitor. With a new set for each competitor it would cost as many forward as backward passes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.bounds.weibull_end_point import weibull_end_points
from margin_ext.models.checked_logits import checked_logits, class_order, require_graph
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.in_parts import InParts, memory_limit
from margin_ext.random_points import Draws, unit_ball
from margin_ext.threat import ThreatModel

__all__ = ["Sampled", "SampledMargins"]


class SampledMargins(NamedTuple):
    """Estimates of a batch.

    Attributes:
        estimate: [B], 0 where the sample is not classified as its label, at most R.
        lipschitz: L_j [B, K] for the K competitors looked at.
        competitors: The classes j [B, K], smallest gap first.
        fitted: Whether L_j is a fitted end point [B, K] and not the largest sampled gradient.

    Example:
        >>> x, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> model = torch.nn.Linear(2, 3)
        >>> found = Sampled(points=16).estimate(model, x, label, threat=ThreatModel(p=2))
        >>> found.estimate.shape, found.lipschitz.shape
        (torch.Size([1]), torch.Size([1, 2]))
    """

    estimate: Tensor
    lipschitz: Tensor
    competitors: Tensor
    fitted: Tensor


# Copies of the noise that drawing it holds.
_DRAWN_COPIES = 4


@register_bound
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Margins estimated from the largest gradient at random points around each sample.

    Attributes:
        points: Points a block. The authors draw 50 blocks of 1024.
        blocks: Number of blocks.
        radius: R, in pixel units where the threat model has input_std.
        nearest: Competitors with the smallest gaps to look at; None: all.
        in_range: Move points outside the data range onto its faces.
        extreme_value: The CLEVER score (Weng et al., arXiv 1801.10578) in place of the plain
            maximum: L_j is the end point of a reverse Weibull distribution fitted to the blocks'
            maxima by maximum likelihood (at least 10 blocks). Where there is no fit the plain
            maximum stands in, and a warning counts these cases.
        chunk: Points a forward pass.
        seed: Seed of the points.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> Sampled(points=16)(model, x, label, threat=ThreatModel(p=2)).distance
        tensor([1.4142])
    """

    points: int = 1024
    blocks: int = 1
    radius: float = 5.0
    nearest: int | None = None
    in_range: bool = False
    extreme_value: bool = False
    chunk: int = 128
    seed: int = 0

    name: ClassVar[str] = "sampled"
    title: ClassVar[str] = "sampled estimate"
    kind: ClassVar[BoundKind] = "estimate"

    def __post_init__(self) -> None:
        if min(self.points, self.blocks, self.chunk) < 1 or (self.nearest or 1) < 1:
            raise ValueError("points, blocks, nearest and chunk must be at least 1")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if self.extreme_value and self.blocks < 10:
            raise ValueError(f"the extreme-value fit needs at least 10 blocks, got {self.blocks}")

    def check(self, threat: ThreatModel) -> None:
        """Any norm will do."""

    def settings(self) -> dict[str, Any]:
        """Everything that the estimates depend on."""
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> BoundResult:
        """The estimates [B] of :meth:`estimate`, as a bound."""
        found = self.estimate(model, inputs, label, threat=threat, indices=indices)
        missing = int((~found.fitted).sum())
        if self.extreme_value and missing:
            warnings.warn(
                f"the extreme-value fit failed for {missing} of {found.fitted.numel()} constants: "
                "the largest sampled gradient stands in",
                stacklevel=2,
            )
        return BoundResult(found.estimate)

    def estimate(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> SampledMargins:
        """Estimate margins, and say from which Lipschitz constants.

        Args:
            model: In eval mode.
            inputs: [B, ...].
            label: The class c [B]; the authors take the predicted one.
            threat: The norm, of the ball too.
            indices: Indices of the samples in the whole data; None: 0 to B - 1.
        """
        numbers = range(inputs.shape[0]) if indices is None else indices
        with torch.no_grad():
            logits = checked_logits(model, inputs)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        competitors = class_order(logits, label)[:, : self.nearest]
        gaps = logits.gather(1, label.unsqueeze(1)) - logits.gather(1, competitors)
        maxima = torch.zeros(*gaps.shape, self.blocks, dtype=gaps.dtype, device=gaps.device)
        generators = Draws(self.seed, self.name, numbers).generators(inputs.device)
        together = max(1, self.chunk // self.points)
        part = self._points_that_fit(model, inputs)
        for first in range(0, inputs.shape[0], together):
            group = slice(first, first + together)
            for block in range(self.blocks):
                for start in range(0, self.points, self.chunk):
                    count = min(self.chunk, self.points - start)
                    noise = _draw(generators[group], count, inputs[0].numel(), threat.p)
                    norms = torch.cat(
                        [
                            _gap_norms(
                                model,
                                self._points(inputs[of], offsets, threat),
                                label[of],
                                competitors[of],
                                threat,
                            )
                            for of, offsets in _parts(first, count, noise, part)
                        ]
                    )
                    largest = norms.reshape(-1, count, norms.shape[1]).amax(dim=1)
                    maxima[group, :, block] = torch.maximum(maxima[group, :, block], largest)
        lipschitz = maxima.amax(dim=2)
        fitted = torch.zeros_like(lipschitz, dtype=torch.bool)
        if self.extreme_value:
            ends = weibull_end_points(maxima.flatten(0, 1))
            lipschitz = ends.end_point.reshape(lipschitz.shape)
            fitted = ends.fitted.reshape(lipschitz.shape)
        ratio = torch.where(lipschitz > 0, gaps / lipschitz, torch.inf)
        estimate = ratio.amin(dim=1).clamp(0.0, self.radius)
        return SampledMargins(estimate, lipschitz, competitors, fitted)

    def _points(self, inputs: Tensor, noise: Tensor, threat: ThreatModel) -> Tensor:
        """Points around inputs [N, ...], one for each row of the noise [N, D]."""
        offset = threat.in_input_units(noise.reshape(inputs.shape) * self.radius)
        points = inputs + offset.to(inputs.dtype)
        return threat.clamp(points) if self.in_range else points

    def _points_that_fit(self, model: Model, inputs: Tensor) -> int:
        """Points a pass, where the memory is limited: all points of a chunk are drawn at once."""
        memory = memory_limit(model)
        if memory is None or not isinstance(model, InParts):
            return self.chunk
        drawn = _DRAWN_COPIES * self.chunk * inputs[0].numel() * 4
        if drawn >= memory:
            raise ValueError(
                f"max_memory of {memory} bytes does not hold the points of Sampled(chunk="
                f"{self.chunk}), which take {drawn}: set a smaller chunk, which draws other points"
            )
        return max(1, int(model.size * (1 - drawn / memory)))


def _draw(generators: Sequence[torch.Generator], count: int, dimensions: int, p: float) -> Tensor:
    """Points of the unit ball [B * count, D], each sample's in a row."""
    drawn = [unit_ball(count, dimensions, p, generator) for generator in generators]
    return torch.cat(drawn) if len(drawn) > 1 else drawn[0]


def _parts(first: int, count: int, noise: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The noise in parts of at most so many rows, each with its rows' samples."""
    for start in range(0, noise.shape[0], size):
        rows = noise[start : start + size]
        of = torch.arange(start, start + len(rows), device=noise.device) // count
        yield first + of, rows


def _gap_norms(
    model: Model, points: Tensor, label: Tensor, competitors: Tensor, threat: ThreatModel
) -> Tensor:
    """Dual norms [N, K] of the gap gradients at points [N, ...], for competitors [N, K]."""
    x = points.requires_grad_()
    logits = checked_logits(model, x)
    require_graph(logits)
    upstream_label = torch.nn.functional.one_hot(label, logits.shape[1]).to(logits.dtype)
    ranks = competitors.shape[1]
    norms = []
    for rank in range(ranks):
        upstream = upstream_label.scatter(1, competitors[:, rank : rank + 1], -1.0)
        (grad,) = torch.autograd.grad(logits, x, upstream, retain_graph=rank + 1 < ranks)
        norms.append(threat.dual_norm(grad))
    return torch.stack(norms, dim=1)
