"""The regularizers phi(t) of a margin or logit gap t: their names and settings.

Formulas: ``margin_ext.reference.regularize`` and ``csrc/core/regularizer.h``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["REGULARIZERS", "Regularizer", "resolve_regularizer"]

# The order is that of RegularizerKind in csrc/core/regularizer.h.
_KINDS: Final = ("ramp", "hinge", "linear", "softplus", "exponential")


@dataclass(frozen=True)
class Regularizer:
    """One phi(t); build it with the class methods.

    Attributes:
        kind: "ramp", "hinge", "linear", "softplus" or "exponential".
        lo: Lower end of the ramp; 0 for the other kinds.
        hi: Upper end of the ramp; tau for the other kinds.
    """

    kind: str
    lo: float
    hi: float

    def __post_init__(self) -> None:
        """Refuse settings that no kernel could serve."""
        if self.kind not in _KINDS:
            raise ValueError(
                f"regularizer kind must be one of {', '.join(_KINDS)}, got {self.kind!r}"
            )
        if not (math.isfinite(self.lo) and math.isfinite(self.hi)):
            raise ValueError(f"regularizer bounds must be finite, got lo={self.lo}, hi={self.hi}")
        if self.kind == "ramp" and not self.lo < self.hi:
            raise ValueError(f"a ramp needs lo < hi, got lo={self.lo}, hi={self.hi}")
        if self.kind in ("softplus", "exponential") and not self.hi > 0:
            raise ValueError(f"{self.kind} needs tau > 0, got {self.hi}")

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
    def code(self) -> int:
        """The number of this kind in csrc/core/regularizer.h."""
        return _KINDS.index(self.kind)


# Named presets, each a function of tau. "ramp" is H_tau - H_0, the form that the paper's text
# describes: it lifts margins of correctly classified samples up to tau. "authors_code" is what
# the authors' published code computes, clamp(-t, 0, tau): it pushes misclassified samples only.
REGULARIZERS: Final = {
    "ramp": lambda tau: Regularizer.ramp(0.0, tau),
    "authors_code": lambda tau: Regularizer.ramp(-tau, 0.0),
    "hinge": Regularizer.hinge,
    "linear": lambda tau: Regularizer.linear(),
    "softplus": Regularizer.softplus,
    "exponential": Regularizer.exponential,
}


def resolve_regularizer(regularizer: str | Regularizer, tau: float) -> Regularizer:
    """Turn a preset's name and tau into a Regularizer; a Regularizer is returned as it is."""
    if isinstance(regularizer, Regularizer):
        return regularizer
    try:
        preset = REGULARIZERS[regularizer]
    except (KeyError, TypeError):
        raise ValueError(
            f"regularizer must be a Regularizer or one of {', '.join(REGULARIZERS)}, "
            f"got {regularizer!r}"
        ) from None
    return preset(float(tau))
