"""What every attack offers, and how an attack is found by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from margin_ext.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from margin_ext.bounds.bound import BoundResult
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = ["ATTACKS", "Attack", "AttackResult", "Sweep", "register_attack", "resolve_attacks"]

AttackClass = TypeVar("AttackClass", bound=type)


class AttackResult(NamedTuple):
    """What an attack found for B samples.

    Attributes:
        robust: Bool [B]: no adversarial example was found.
        point: [B, ...]: the adversarial examples, the input itself where none was found.

    Example:
        >>> found = AttackResult(torch.tensor([True, False]), point=torch.zeros(2, 3))
        >>> found.robust.float().mean()
        tensor(0.5000)
    """

    robust: Tensor
    point: Tensor


class Attack(Protocol):
    """A search for an input of another class inside a ball of a given radius."""

    @property
    def name(self) -> str:
        """Its word in ``attacks=``, in results and in files."""
        ...

    @property
    def title(self) -> str:
        """Its column in a table."""
        ...

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where the attack does not exist for this threat model."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that its results depend on, as plain values."""
        ...

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> AttackResult:
        """Attack inputs [B, ...] of class target [B].

        Args:
            model: In eval mode.
            inputs: [B, ...].
            target: [B].
            eps: Radius, in pixel units where the threat model has input_std.
            threat: The norm, and the range of the data.
            indices: Indices of the samples in the whole data [B]: random numbers depend on them
                and not on the batch.
        """
        ...


@runtime_checkable
class Sweep(Protocol):
    """What an attack offers in addition that answers for several radii at once."""

    def sweep(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        radii: Sequence[float],
        *,
        threat: ThreatModel,
        indices: Sequence[int],
    ) -> BoundResult:
        """Distances and points of adversarial examples, as near as the radii [R] ask for."""
        ...


ATTACKS: Registry[Attack] = Registry("attacks")


def register_attack(attack: AttackClass) -> AttackClass:
    """Make a class known by its ``name``, so that ``attacks=["name"]`` finds it.

    Example:
        >>> from margin_ext.attacks import PGD
        >>> @register_attack
        ... class LongPGD(PGD):
        ...     name, title = "long_pgd", "PGD in 500 steps"
        ...     def __init__(self, seed=0):
        ...         super().__init__(steps=500, seed=seed)
        >>> [attack.steps for attack in resolve_attacks(["long_pgd"])]
        [500]
    """
    return ATTACKS.register(attack)


def resolve_attacks(attacks: Iterable[str | Attack], *, seed: int = 0) -> tuple[Attack, ...]:
    """Attack objects, made with their usual settings where only the name is given.

    Args:
        attacks: Names and objects, mixed as you like.
        seed: Seed of the attacks that are given by name; an object has its own.

    Raises:
        ValueError: A name is unknown, or two attacks have the same.

    Example:
        >>> [attack.title for attack in resolve_attacks(["gap", "cross_entropy"])]
        ['PGD on the gap', 'PGD on the cross-entropy']
    """
    return ATTACKS.resolve(attacks, seed=seed)
