"""The authors' sampled margin: an estimate, not a bound (paper.md sections 2 and 5).

For the class c and every competitor j: L_j = largest dual norm of grad(z_c - z_j) over points drawn
uniformly in the l_p ball of radius R; the estimate is min_j min(R, (z_c - z_j)(x) / L_j). The true
local Lipschitz constant is at least L_j, so that the estimate is at least what it estimates.

Here all competitors share one set of points, so that a point costs one forward pass and one
backward pass a competitor; drawn anew for each, it costs as many forward passes as backward ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from margin_ext.input_std import channel_scale
from margin_ext.models.checked_logits import checked_logits, class_order, require_graph
from margin_ext.models.evaluation_mode import Model
from margin_ext.random_points import sample_generator, unit_ball
from margin_ext.threat import DataRange, ThreatModel

__all__ = ["SampledMargins", "Sampling", "sampled_margins"]


@dataclass(frozen=True)
class Sampling:
    """What to draw.

    Attributes:
        points: Points a block. The authors draw 50 blocks of 1024.
        blocks: Number of blocks.
        radius: R, in pixel units where input_std is given.
        nearest: Competitors with the smallest gaps to look at; None: all.
        clip: Move points outside the data range onto its faces.
        extreme_value: The CLEVER score (Weng et al., 2018) in place of the plain maximum: L_j is
            the location parameter of a reverse Weibull distribution fitted to the blocks' maxima
            by maximum likelihood (needs scipy; at least 10 blocks).
        chunk: Points a forward pass.
    """

    points: int = 1024
    blocks: int = 1
    radius: float = 5.0
    nearest: int | None = None
    clip: bool = False
    extreme_value: bool = False
    chunk: int = 128

    def __post_init__(self) -> None:
        if min(self.points, self.blocks, self.chunk) < 1 or (self.nearest or 1) < 1:
            raise ValueError("points, blocks, nearest and chunk must be at least 1")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if self.extreme_value and self.blocks < 10:
            raise ValueError(f"the extreme-value fit needs at least 10 blocks, got {self.blocks}")


class SampledMargins(NamedTuple):
    """Estimates of a batch.

    Attributes:
        estimate: [B], 0 where the sample is not classified as its label, at most R.
        lipschitz: L_j [B, K] for the K competitors looked at.
        competitors: The classes j [B, K], smallest gap first.
    """

    estimate: Tensor
    lipschitz: Tensor
    competitors: Tensor


def sampled_margins(
    model: Model,
    inputs: Tensor,
    label: Tensor,
    *,
    p: float = 2,
    settings: Sampling | None = None,
    data_range: DataRange | None = None,
    input_std: float | Sequence[float] | Tensor | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> SampledMargins:
    """Estimate margins by sampling gradients around each sample.

    Args:
        model: In eval mode.
        inputs: [B, ...].
        label: The class c [B]; the authors take the predicted one.
        p: Threat norm, of the ball too.
        settings: Number of points, radius and so on.
        data_range: As in `pgd`; used where settings.clip.
        input_std: Standard deviation(s) of the loader's normalisation.
        seed: Of the points.
        indices: Of the samples in the whole data; None: 0 to B - 1.
    """
    settings = settings or Sampling()
    numbers = range(inputs.shape[0]) if indices is None else indices
    with torch.no_grad():
        logits = checked_logits(model, inputs)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    competitors = class_order(logits, label)[:, : settings.nearest]
    gaps = logits.gather(1, label.unsqueeze(1)) - logits.gather(1, competitors)
    maxima = torch.zeros(*gaps.shape, settings.blocks, dtype=gaps.dtype, device=gaps.device)
    generators = [sample_generator(seed, "sampled", index, inputs.device) for index in numbers]
    together = max(1, settings.chunk // settings.points)
    for first in range(0, inputs.shape[0], together):
        group = slice(first, first + together)
        for block in range(settings.blocks):
            for start in range(0, settings.points, settings.chunk):
                count = min(settings.chunk, settings.points - start)
                points = _draw(
                    inputs[group], generators[group], count, p, settings, data_range, input_std
                )
                norms = _gap_norms(
                    model, points, label[group], competitors[group], p=p, input_std=input_std
                )
                maxima[group, :, block] = torch.maximum(maxima[group, :, block], norms)
    lipschitz = _locations(maxima) if settings.extreme_value else maxima.amax(dim=2)
    ratio = torch.where(lipschitz > 0, gaps / lipschitz, torch.inf)
    estimate = ratio.amin(dim=1).clamp(0.0, settings.radius)
    return SampledMargins(estimate, lipschitz, competitors)


def _draw(
    inputs: Tensor,
    generators: Sequence[torch.Generator],
    count: int,
    p: float,
    settings: Sampling,
    data_range: DataRange | None,
    input_std: float | Sequence[float] | Tensor | None,
) -> Tensor:
    """Points [B * count, ...] around inputs [B, ...], each sample's in a row."""
    size = inputs[0].numel()
    noise = torch.stack([unit_ball(count, size, p, generator) for generator in generators])
    noise = noise.reshape(-1, *inputs.shape[1:]).mul_(settings.radius)
    if input_std is not None:
        noise = noise * channel_scale(input_std, inputs)
    points = inputs.repeat_interleave(count, dim=0) + noise.to(inputs.dtype)
    return ThreatModel(data_range=data_range).clamp(points) if settings.clip else points


def _gap_norms(
    model: Model,
    points: Tensor,
    label: Tensor,
    competitors: Tensor,
    *,
    p: float,
    input_std: float | Sequence[float] | Tensor | None,
) -> Tensor:
    """Largest dual norm of each competitor's gap gradient over the sample's points [B, K]."""
    x = points.requires_grad_()
    logits = checked_logits(model, x)
    require_graph(logits)
    count = points.shape[0] // label.shape[0]
    rank_count = competitors.shape[1]
    chosen = competitors.repeat_interleave(count, dim=0)
    upstream_label = torch.nn.functional.one_hot(
        label.repeat_interleave(count), logits.shape[1]
    ).to(logits.dtype)
    largest = []
    for rank in range(rank_count):
        upstream = upstream_label.scatter(1, chosen[:, rank : rank + 1], -1.0)
        (grad,) = torch.autograd.grad(logits, x, upstream, retain_graph=rank + 1 < rank_count)
        norm = ThreatModel(p=p, input_std=input_std).dual_norm(grad)
        largest.append(norm.reshape(label.shape[0], count).amax(dim=1))
    return torch.stack(largest, dim=1)


def _locations(maxima: Tensor) -> Tensor:
    """Right end point of a reverse Weibull distribution fitted to block maxima [B, K, blocks]."""
    try:
        from scipy.stats import weibull_max
    except ImportError as error:
        raise ImportError(
            "the extreme-value score needs scipy: pip install 'margin_ext[certify]'"
        ) from error
    values = maxima.double().cpu().numpy().reshape(-1, maxima.shape[2])
    fitted = np.empty(values.shape[0])
    for row, block_maxima in enumerate(values):
        top, spread = block_maxima.max(), float(np.ptp(block_maxima))
        if spread <= 1e-9 * top:
            # A linear model: every block has the same maximum.
            fitted[row] = top
            continue
        # Fitted on values of order 1, started just above the largest; the end point is no smaller.
        scaled = (block_maxima - top) / spread
        _, location, _ = weibull_max.fit(scaled, loc=0.1, scale=0.5)
        fitted[row] = top + spread * max(location, 0.0)
    return torch.as_tensor(fitted.reshape(maxima.shape[:2]), dtype=maxima.dtype).to(maxima.device)
