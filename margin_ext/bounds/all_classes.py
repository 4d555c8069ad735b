"""How every class is looked at where all of them compete with the label."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from margin_ext.plain_numbers import whole_number

__all__ = ["AllClasses", "ClassSearch", "Derivatives"]

ClassSearch = Literal["auto", "sketch", "exhaustive"]
Derivatives = Literal["auto", "forward_mode", "differences"]

# Classes for each sketch from which the search is faster: its 48 derivatives take as long as 63
# backward passes in a ResNet-50 and in a CNN of two layers, and then some gradients are computed.
_PAYS_FROM = 150
_DIRECTIONS = 48


@dataclass(frozen=True, kw_only=True)
class AllClasses:
    """Every class competes with the label, in a few passes or in C - 1.

    A sketch estimates the gradient norms of all gaps at once, from the derivatives of the logits
    along random directions. Then gradients are computed class by class, in the order of a lower
    bound on the margin, until no class that is left can be nearer. Every sample's answer is that
    of the exhaustive way with probability 1 - failure or more.

    Attributes:
        search: "sketch", "exhaustive" (C - 1 backward passes), or "auto": by sketch from so many
            classes on that it is faster, in norms that have one (p >= 2).
        failure: Largest probability, for each sample and norm, that the answer is not the
            exhaustive one.
        directions: Random directions for each norm. More of them leave fewer backward passes.
        derivatives: "forward_mode" differentiation, finite "differences" of forward passes
            (p = 2 only), or "auto": differences where a layer has no forward mode.

    Example:
        >>> AllClasses(search="sketch").sketched(classes=10, norms=1)
        True
    """

    search: ClassSearch = "auto"
    failure: float = 1e-6
    directions: int = _DIRECTIONS
    derivatives: Derivatives = "auto"

    def __post_init__(self) -> None:
        for name, words in (("search", ClassSearch), ("derivatives", Derivatives)):
            given = getattr(self, name)
            if given not in get_args(words):
                raise ValueError(f"{name} must be from {', '.join(get_args(words))}, got {given!r}")
        if not 0 < self.failure < 0.5:
            raise ValueError(f"failure must lie between 0 and 0.5, got {self.failure!r}")
        object.__setattr__(self, "directions", whole_number("directions", self.directions, least=8))

    def sketched(self, classes: int, norms: int) -> bool:
        """Whether so many classes are searched by sketches in so many norms."""
        if self.search == "auto":
            return classes >= _PAYS_FROM * norms
        return self.search == "sketch"

    def settings(self) -> dict[str, Any]:
        """Plain values, for reports and to recognise stored results."""
        return asdict(self)
