"""What every bound on the margin offers, and how a bound is found by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from margin_ext.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = ["BOUNDS", "Bound", "BoundKind", "BoundResult", "register_bound", "resolve_bounds"]

BoundKind = Literal["upper", "lower", "estimate"]

BoundClass = TypeVar("BoundClass", bound=type)


class BoundResult(NamedTuple):
    """What a bound says of B samples.

    Attributes:
        distance: [B], in the threat model's units. Infinite: nothing was found.
        point: [B, ...], for an upper bound the adversarial examples; None where there are none.

    Example:
        >>> found = BoundResult(torch.tensor([0.5, torch.inf]))
        >>> found.distance.isinf(), found.point is None
        (tensor([False,  True]), True)
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
            indices: Indices of the samples in the whole data [B]: random numbers depend on them
                and not on the batch.
        """
        ...


BOUNDS: Registry[Bound] = Registry("bounds", old_names={"attack": "minimum_distance"})


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
        >>> BOUNDS.makers.pop("zero") is Zero
        True
    """
    return BOUNDS.register(bound)


def resolve_bounds(bounds: Iterable[str | Bound], *, seed: int = 0) -> tuple[Bound, ...]:
    """Bound objects, made with their usual settings where only the name is given.

    Args:
        bounds: Names and objects, mixed as you like.
        seed: Seed of the bounds that are given by name; an object has its own.

    Raises:
        ValueError: A name is unknown, or two bounds have the same.

    Example:
        >>> [bound.title for bound in resolve_bounds(["certified", "minimum_distance"])]
        ['certified (lower bound)', 'minimum distance (upper bound)']
    """
    return BOUNDS.resolve(bounds, seed=seed)
