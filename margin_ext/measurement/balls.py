"""The balls in which adversarial examples are looked for."""

from __future__ import annotations

from dataclasses import dataclass

from margin_ext.threat import ThreatModel, check_radius

__all__ = ["Balls"]


@dataclass(frozen=True)
class Balls:
    """The balls around each sample in which adversarial examples are looked for.

    Attributes:
        threat: The norm and the data range.
        radii: One or several; kept in ascending order.

    Raises:
        ValueError: There is no radius, or one is negative or infinite.

    >>> Balls(ThreatModel(p=2), (1.0, 0.5)).radii
    (0.5, 1.0)
    """

    threat: ThreatModel
    radii: tuple[float, ...]

    def __post_init__(self) -> None:
        radii = tuple(sorted(self.radii))
        if not radii:
            raise ValueError("eps must name at least one radius")
        for radius in radii:
            check_radius(radius)
        object.__setattr__(self, "radii", radii)
