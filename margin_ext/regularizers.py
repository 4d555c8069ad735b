"""The regularizers phi(t) of a margin or logit gap t: their kinds, formulas and presets.

This is the one Python file of a regularizer. A kind that the fused op knows has the same formula in
csrc/core/regularizer.h, under its number; any other kind is served by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["Regularizer", "register_regularizer", "regularizer_names", "resolve_regularizer"]


@dataclass(frozen=True)
class _Kind:
    """A formula of phi.

    Attributes:
        formula: phi(t, lo, hi), element by element and differentiable.
        refuse: What is wrong with lo and hi, in words; empty where nothing is.
        width: The number, made of lo and hi, that must be above 0; None: there is none.
        number: Its number in RegularizerKind of csrc/core/regularizer.h; None: the op lacks it.
    """

    formula: Callable[[Tensor, float, float], Tensor]
    refuse: Callable[[float, float], str]
    number: int | None = None
    width: Callable[[float, float], float] | None = None


def _any(lo: float, hi: float) -> str:
    return ""


def _positive_tau(lo: float, hi: float) -> str:
    return "" if hi > 0 else f"needs tau > 0, got {hi}"


def _tau(lo: float, hi: float) -> float:
    return hi


def _rising_ends(lo: float, hi: float) -> str:
    return "" if lo < hi else f"needs lo < hi, got lo={lo}, hi={hi}"


_KINDS: Final = {
    "ramp": _Kind(
        lambda t, lo, hi: torch.clamp(hi - t, 0.0, hi - lo), _rising_ends, 0, lambda lo, hi: hi - lo
    ),
    "hinge": _Kind(lambda t, lo, hi: torch.clamp(hi - t, min=0.0), _any, 1),
    "linear": _Kind(lambda t, lo, hi: -t, _any, 2),
    "softplus": _Kind(
        lambda t, lo, hi: hi * torch.logaddexp(torch.zeros_like(t), -t / hi), _positive_tau, 3, _tau
    ),
    "exponential": _Kind(lambda t, lo, hi: torch.exp(-t / hi), _positive_tau, 4, _tau),
}


@dataclass(frozen=True)
class Regularizer:
    """One phi(t); build it with the class methods, and call it on margins.

    Attributes:
        kind: "ramp", "hinge", "linear", "softplus", "exponential" or a registered name.
        lo: Lower end of the ramp; 0 for the other kinds.
        hi: Upper end of the ramp; tau for the other kinds.

    Raises:
        ValueError: There is no such kind, or lo and hi do not fit it.

    Example:
        >>> Regularizer.ramp(0, 3)(torch.tensor([-1.0, 1.0, 4.0]))
        tensor([3., 2., 0.])
        >>> Regularizer.hinge(2)(torch.tensor([-1.0, 1.0, 4.0]))
        tensor([3., 1., 0.])
        >>> Regularizer.linear()(torch.tensor([-1.0, 1.0]))
        tensor([ 1., -1.])
        >>> Regularizer.softplus(1)(torch.tensor([0.0])), Regularizer.exponential(1)(torch.zeros(1))
        (tensor([0.6931]), tensor([1.]))
        >>> print(Regularizer.ramp(0, 3))
        ramp[0, 3]
    """

    kind: str
    lo: float
    hi: float

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"regularizer kind must be one of {', '.join(_KINDS)}, got {self.kind!r}"
            )
        if not (math.isfinite(self.lo) and math.isfinite(self.hi)):
            raise ValueError(f"regularizer bounds must be finite, got lo={self.lo}, hi={self.hi}")
        if problem := _KINDS[self.kind].refuse(self.lo, self.hi):
            raise ValueError(f"regularizer {self.kind} {problem}")

    def check_type(self, dtype: torch.dtype) -> None:
        """Require bounds that margins of this type can tell apart.

        Raises:
            ValueError: A bound is too large for the type, or they would round to the same number.
        """
        info = torch.finfo(dtype)
        largest = max(abs(self.lo), abs(self.hi))
        width = _KINDS[self.kind].width
        least = max(info.tiny, info.eps * largest)
        if largest > info.max or (width is not None and width(self.lo, self.hi) < least):
            raise ValueError(
                f"regularizer {self.kind} with lo={self.lo}, hi={self.hi} is too narrow or too "
                f"large for {dtype}"
            )

    def __call__(self, t: Tensor) -> Tensor:
        """phi(t), element by element."""
        return _KINDS[self.kind].formula(t, self.lo, self.hi)

    def __str__(self) -> str:
        return f"{self.kind}[{self.lo:g}, {self.hi:g}]"

    @classmethod
    def ramp(cls, lo: float, hi: float) -> Regularizer:
        """clamp(hi - t, 0, hi - lo): slope -1 on [lo, hi], flat outside."""
        return cls("ramp", float(lo), float(hi))

    @classmethod
    def hinge(cls, tau: float) -> Regularizer:
        """max(0, tau - t)."""
        return cls("hinge", 0.0, float(tau))

    @classmethod
    def linear(cls) -> Regularizer:
        """-t."""
        return cls("linear", 0.0, 1.0)

    @classmethod
    def softplus(cls, tau: float) -> Regularizer:
        """The smooth hinge tau * log(1 + exp(-t / tau))."""
        return cls("softplus", 0.0, float(tau))

    @classmethod
    def exponential(cls, tau: float) -> Regularizer:
        """exp(-t / tau)."""
        return cls("exponential", 0.0, float(tau))

    @property
    def code(self) -> int | None:
        """The number of this kind in csrc/core/regularizer.h; None where the fused op lacks it."""
        return _KINDS[self.kind].number


# What a name and tau stand for. "ramp" is H_tau - H_0 of arXiv 1907.11780: it lifts margins of
# correctly classified samples up to tau. "negative_ramp" is what the authors' published code
# computes, clamp(-t, 0, tau): it pushes misclassified samples, whose margins are negative.
_PRESETS: Final[dict[str, Callable[[float], Regularizer]]] = {
    "ramp": lambda tau: Regularizer.ramp(0.0, tau),
    "negative_ramp": lambda tau: Regularizer.ramp(-tau, 0.0),
    "hinge": Regularizer.hinge,
    "linear": lambda tau: Regularizer.linear(),
    "softplus": Regularizer.softplus,
    "exponential": Regularizer.exponential,
}


def register_regularizer(name: str, formula: Callable[[Tensor, float], Tensor]) -> None:
    """Add a regularizer in Python: ``AverageMarginLoss(regularizer=name)`` takes it afterwards.

    Its loss is composed of differentiable ops in place of the fused one.

    Args:
        name: New; the built-in ones cannot be replaced.
        formula: phi(t, tau), element by element, made of differentiable torch functions. It must
            be finite for every finite t.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> register_regularizer("squared_hinge", lambda t, tau: torch.relu(tau - t) ** 2)
        >>> resolve_regularizer("squared_hinge", tau=2.0)(torch.tensor([0.0, 3.0]))
        tensor([4., 0.])
    """
    if name in _KINDS or name in _PRESETS:
        raise ValueError(f"there is a regularizer {name!r} already")
    _KINDS[name] = _Kind(lambda t, lo, hi: formula(t, hi), _any)
    _PRESETS[name] = lambda tau: Regularizer(name, 0.0, float(tau))


def regularizer_names() -> tuple[str, ...]:
    """The words that ``AverageMarginLoss(regularizer=...)`` takes.

    Example:
        >>> regularizer_names()[:2]
        ('ramp', 'negative_ramp')
    """
    return tuple(_PRESETS)


def resolve_regularizer(regularizer: str | Regularizer, tau: float) -> Regularizer:
    """Turn a name and tau into a Regularizer; a Regularizer is returned as it is.

    Raises:
        ValueError: There is no such name, or tau does not fit it.

    Example:
        >>> resolve_regularizer("negative_ramp", 3)
        Regularizer(kind='ramp', lo=-3.0, hi=0.0)
    """
    if isinstance(regularizer, Regularizer):
        return regularizer
    if regularizer == "authors_code":
        raise ValueError('regularizer "authors_code" is now called "negative_ramp"')
    try:
        preset = _PRESETS[regularizer]
    except (KeyError, TypeError):
        raise ValueError(
            f"regularizer must be a Regularizer or one of {', '.join(_PRESETS)}, "
            f"got {regularizer!r}"
        ) from None
    if not math.isfinite(tau):
        raise ValueError(f"tau must be finite, got {tau}")
    try:
        return preset(float(tau))
    except ValueError as error:
        problem = f"tau={tau:g} does not fit regularizer={regularizer!r}: {error}"
        raise ValueError(problem) from None
