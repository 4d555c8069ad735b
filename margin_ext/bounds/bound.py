"""What every bound on the margin offers, and how a bound is found by its name."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = ["BOUNDS", "Bound", "BoundKind", "BoundResult", "register_bound", "resolve_bounds"]

BoundKind = Literal["upper", "lower", "estimate"]


class BoundResult(NamedTuple):
    """What a bound says of B samples.

    Attributes:
        distance: [B], in the threat model's units. Infinite: nothing was found.
        point: [B, ...], for an upper bound the adversarial examples; None where there are none.
    """

    distance: Tensor
    point: Tensor | None = None


class Bound(Protocol):
    """A bound on the distance from a sample to the nearest input of another class.

    ``measure`` calls it with samples that are all on the label's side of the boundary.
    """

    @property
    def name(self) -> str:
        """Its word in ``bounds=``, in tables of samples and in files."""
        ...

    @property
    def title(self) -> str:
        """Its line in a report."""
        ...

    @property
    def kind(self) -> BoundKind:
        """Whether it lies above the true distance, below it, or on either side."""
        ...

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where the bound does not exist for this threat model."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that its values depend on, as plain values."""
        ...

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> BoundResult:
        """Bound the distances of inputs [B, ...] from label [B].

        Args:
            model: In eval mode.
            inputs: [B, ...].
            label: [B].
            threat: How distances are measured, and the range of the data.
            indices: Of the samples in the whole data [B]: random numbers depend on them alone.
        """
        ...


# What makes each bound that has a name, with its usual settings.
BOUNDS: dict[str, Callable[..., Bound]] = {}

_OLD_NAMES = {"attack": "minimum_distance"}

BoundClass = TypeVar("BoundClass", bound=type)


def register_bound(bound: BoundClass) -> BoundClass:
    """Make a class known by its ``name``, so that ``bounds=["name"]`` finds it.

    Example:
        >>> from margin_ext.bounds import BOUNDS, BoundResult, register_bound
        >>> @register_bound
        ... class Zero:
        ...     name, title, kind = "zero", "zero (lower bound)", "lower"
        ...
        ...     def check(self, threat):
        ...         pass
        ...
        ...     def settings(self):
        ...         return {}
        ...
        ...     def __call__(self, model, inputs, label, *, threat, indices):
        ...         return BoundResult(inputs.new_zeros(len(inputs)))
        >>> BOUNDS.pop("zero") is Zero
        True
    """
    BOUNDS[bound.name] = bound  # type: ignore[attr-defined]
    return bound


def resolve_bounds(bounds: Iterable[str | Bound], *, seed: int = 0) -> tuple[Bound, ...]:
    """Bound objects, made with their usual settings where only the name is given.

    Args:
        bounds: Names and objects, mixed as you like.
        seed: Of the bounds that are given by name; an object has its own.

    Raises:
        ValueError: A name is unknown, or two bounds have the same.

    Example:
        >>> [bound.title for bound in resolve_bounds(["certified", "minimum_distance"])]
        ['certified (lower bound)', 'minimum distance (upper bound)']
    """
    if isinstance(bounds, str):
        raise ValueError(f'bounds must be a sequence such as ["{bounds}"], got the string')  # noqa: TRY004
    found = tuple(_by_name(one, seed) if isinstance(one, str) else one for one in bounds)
    names = [bound.name for bound in found]
    if len(set(names)) < len(names):
        raise ValueError(f"each bound can be measured once, got {', '.join(names)}")
    return found


def _by_name(name: str, seed: int) -> Bound:
    if name in _OLD_NAMES:
        new = _OLD_NAMES[name]
        warnings.warn(
            f'the bound "{name}" is called "{new}" now; results are stored under that name',
            FutureWarning,
            stacklevel=5,
        )
        name = new
    if name not in BOUNDS:
        raise ValueError(f"bounds must be from {', '.join(sorted(BOUNDS))}, got {name!r}")
    make = BOUNDS[name]
    return make(seed=seed) if "seed" in inspect.signature(make).parameters else make()
