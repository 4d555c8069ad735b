"""The right end point of a reverse Weibull distribution, by maximum likelihood.

The maxima of blocks of bounded random numbers follow such a distribution in the limit; its end
point estimates the largest value that can occur (Weng et al., arXiv 1801.10578).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EndPoints", "weibull_end_points"]

# Candidates for the end point, in units of the maxima's spread beyond the largest. The likelihood
# grows without bound toward the largest where the shape is below 1, and may grow toward infinity:
# neither end is an estimate.
_NEAREST, _FARTHEST, _CANDIDATES = 1e-3, 5.0, 64
_LARGEST_SHAPE = 1e3
# Kolmogorov and Smirnov's statistic that fewer than one sample in twenty exceeds, times sqrt(n).
_MISFIT = 1.36


class EndPoints(NamedTuple):
    """Estimates for R samples.

    Attributes:
        end_point: [R]; the largest maximum where there is no fit.
        fitted: Bool [R]: whether the likelihood has a maximum, and the distribution fits.
    """

    end_point: Tensor
    fitted: Tensor


def weibull_end_points(maxima: Tensor) -> EndPoints:
    """Fit every row of maxima [R, n].

    Where all maxima of a row are equal, as with a linear model, they are the end point.

    Example:
        >>> quantiles = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
        >>> maxima = 1 - 0.3 * (-torch.log(quantiles)) ** (1 / 3)  # shape 3, end point 1
        >>> found = weibull_end_points(maxima.unsqueeze(0))
        >>> 0.95 < float(found.end_point) < 1.1, bool(found.fitted)
        (True, True)
    """
    values = maxima.double()
    top = values.amax(dim=1)
    spread = top - values.amin(dim=1)
    equal = spread <= 1e-9 * top.abs()
    unit = torch.where(equal, 1.0, spread)
    # How far the largest lies above each, in units of the spread: between 0 and 1.
    below = (top.unsqueeze(1) - values) / unit.unsqueeze(1)
    ends = torch.logspace(
        math.log10(_NEAREST), math.log10(_FARTHEST), _CANDIDATES,
        dtype=torch.float64, device=values.device,
    )  # fmt: skip
    distance = ends.reshape(1, -1, 1) + below.unsqueeze(1)
    shape, likelihood = _profile(distance)
    # A shape below 1 puts the mode at the end point itself.
    likelihood = likelihood.masked_fill((shape < 1) | (shape >= _LARGEST_SHAPE), -math.inf)
    best = likelihood.argmax(dim=1)
    inner = (best > 0) & (best < _CANDIDATES - 1)
    chosen = distance[torch.arange(len(best), device=best.device), best]
    fits = _fits(chosen, shape.gather(1, best.unsqueeze(1)))
    peak = likelihood.amax(dim=1)
    fitted = inner & fits & torch.isfinite(peak) & ~equal
    beyond = torch.where(fitted, ends[best] * unit, 0.0)
    return EndPoints((top + beyond).to(maxima.dtype), fitted | equal)


def _profile(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Shape [R, E] of the best Weibull distribution of distances [R, E, n], and its likelihood."""
    logs = distance.log()
    # Powers of the ratio to the largest cannot overflow.
    largest = logs.amax(dim=2, keepdim=True)
    ratio = logs - largest
    mean = ratio.mean(dim=2)
    low = torch.full_like(mean, math.log(1e-2))
    high = torch.full_like(mean, math.log(_LARGEST_SHAPE))
    for _ in range(30):
        middle = (low + high) / 2
        shape = middle.exp()
        powers = (shape.unsqueeze(2) * ratio).exp()
        # Rises with the shape; 0 where the likelihood is largest.
        slope = (powers * ratio).sum(dim=2) / powers.sum(dim=2) - 1 / shape - mean
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    shape = high.exp()
    powers = (shape.unsqueeze(2) * ratio).exp().mean(dim=2)
    likelihood = shape.log() - powers.log() - 1 + (shape - 1) * mean - largest.squeeze(2)
    return shape, likelihood


def _fits(distance: Tensor, shape: Tensor) -> Tensor:
    """Whether Kolmogorov and Smirnov's statistic of distances [R, n] is small."""
    count = distance.shape[1]
    ordered = distance.sort(dim=1).values
    powers = (ordered / ordered[:, -1:]) ** shape
    cumulative = 1 - (-powers / powers.mean(dim=1, keepdim=True)).exp()
    steps = torch.arange(count + 1, dtype=distance.dtype, device=distance.device) / count
    apart = torch.maximum(cumulative - steps[:-1], steps[1:] - cumulative).amax(dim=1)
    return apart * math.sqrt(count) <= _MISFIT
