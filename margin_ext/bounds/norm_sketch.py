"""Norms from inner products with random vectors: stable sketches (Indyk, J. ACM 53(3), 2006).

For 0 < q <= 2 and a vector r of independent symmetric q-stable numbers, g . r is distributed as
||g||_q times one such number. So M products with independent vectors give an interval for ||g||_q
whose probability depends on M alone, not on g or its length. q = 2: normal numbers, and the sum of
the squares is chi-squared. q = 1: Cauchy numbers. Below 2 the interval comes from an order
statistic of the absolute values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["NormInterval", "NormSketch", "has_sketch"]


def has_sketch(q: float) -> bool:
    """Whether a sketch exists for the norm of this exponent."""
    return 1 <= q <= 2


@dataclass(frozen=True)
class NormInterval:
    """Bounds on norms, each of which fails with the probability that was asked for.

    Attributes:
        lower: [...].
        upper: [...].
    """

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class NormSketch:
    """The sketch for the norm of exponent q, 1 <= q <= 2."""

    q: float

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """One random vector, float64 [size]."""
        kind: dict[str, Any] = {"device": generator.device, "dtype": torch.float64}
        if self.q == 2:
            return torch.randn(size, generator=generator, **kind)
        # Chambers, Mallows and Stuck, JASA 71 (1976).
        angle: Tensor = (torch.rand(size, generator=generator, **kind) - 0.5) * math.pi
        if self.q == 1:
            return torch.tan(angle)
        wait = -torch.rand(size, generator=generator, **kind).log()
        slow = torch.cos(angle * (1 - self.q)) / wait.clamp_min(torch.finfo(torch.float64).tiny)
        fast = torch.sin(angle * self.q) / torch.cos(angle).pow(1 / self.q)
        return fast * slow.pow((1 - self.q) / self.q)

    def interval(self, products: Tensor, error: Tensor, failure: float) -> NormInterval:
        """Bounds on the norm of every g.

        Args:
            products: g . r for M directions [M, ...].
            error: How far each of them may be off [M, ...].
            failure: Probability of each bound to fail.
        """
        if self.q == 2:
            low, high = _chi_square_ends(products.shape[0], failure)
            total = torch.linalg.vector_norm(products, dim=0, dtype=torch.float64)
            wrong = torch.linalg.vector_norm(error, dim=0, dtype=torch.float64)
            return NormInterval(
                (total - wrong).clamp_min(0) / math.sqrt(high), (total + wrong) / math.sqrt(low)
            )
        low, high = _median_ends(products.shape[0], self.q, failure)
        size = products.abs()
        return NormInterval(_median(size - error).clamp_min(0) / high, _median(size + error) / low)


def _median(values: Tensor) -> Tensor:
    return values.kthvalue(_middle(values.shape[0]), dim=0).values.double()


def _middle(count: int) -> int:
    return (count + 1) // 2


@lru_cache
def _chi_square_ends(count: int, failure: float) -> tuple[float, float]:
    """Quantiles of the chi-square distribution at failure and 1 - failure."""
    half = torch.tensor(count / 2, dtype=torch.float64)

    def lower_tail(x: float) -> float:
        return float(torch.special.gammainc(half, torch.tensor(x / 2, dtype=torch.float64)))

    def upper_tail(x: float) -> float:
        return float(torch.special.gammaincc(half, torch.tensor(x / 2, dtype=torch.float64)))

    low = _largest(lambda x: lower_tail(x) <= failure, 0.0, float(count))
    high = _largest(lambda x: upper_tail(x) >= failure, float(count), 100.0 * count + 1000)
    return low, math.nextafter(high * (1 + 1e-12), math.inf)


@lru_cache
def _median_ends(count: int, q: float, failure: float) -> tuple[float, float]:
    """Quantiles of the middle one of so many absolute values of q-stable numbers."""
    middle = _middle(count)

    def at_least(share: float, least: int) -> float:
        """Probability of ``least`` successes or more out of ``count``."""
        return math.fsum(
            math.comb(count, k) * share**k * (1 - share) ** (count - k)
            for k in range(least, count + 1)
        )

    # The middle value lies below x when so many values do.
    below = _largest(lambda share: at_least(share, middle) <= failure, 0.0, 0.5)
    # It lies above x when more than count - middle values do.
    above = _largest(lambda share: at_least(share, count - middle + 1) <= failure, 0.0, 0.5)
    return _stable_quantile(below, q), _stable_quantile(1 - above, q)


@lru_cache
def _stable_quantile(share: float, q: float) -> float:
    """The value that |X| lies below with probability ``share``, X symmetric q-stable."""
    if q == 1:
        return math.tan(math.pi * share / 2)
    return _largest(lambda x: _stable_distribution(x, q) <= share, 0.0, 1e6)


def _stable_distribution(x: float, q: float) -> float:
    """P(|X| < x) for a symmetric q-stable X, 1 < q < 2 (Zolotarev's integral, by midpoints)."""
    count = 20000
    angle = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / 2 / count)
    rest = angle.cos() / (q * angle).sin()
    shape = rest.pow(q / (q - 1)) * ((q - 1) * angle).cos() / angle.cos()
    tail = float((-(x ** (q / (q - 1))) * shape).exp().mean())
    return 1 - tail


def _largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number in [low, high] for which a falling condition holds, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
