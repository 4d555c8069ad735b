"""Any library's attack as a bound of ``measure``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from margin_ext.bounds import BoundResult
from margin_ext.functional import logit_gap
from margin_ext.per_sample import per_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from margin_ext.bounds import BoundKind
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = ["AttackDistance"]

# A point that a library clamped in other units may lie a rounding outside of the range.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class AttackDistance:
    """The distance of the adversarial examples that an attack finds: an upper bound on the margin.

    What the attack returns is not believed: a point counts if the model classifies it wrongly and
    it lies in the data range, and its distance is measured here. Otherwise the distance is
    infinite: nothing was found. With adv-lib, whose attacks have this signature::

        from adv_lib.attacks import alma
        bound = AttackDistance(partial(alma, norm=2, num_steps=200), "alma", {"num_steps": 200})
        report = measure(model, data, p=2, bounds=["minimum_distance", bound], data_range=(0, 1))

    With AutoAttack at one radius::

        def attack(model, inputs, labels):
            return AutoAttack(model, norm="L2", eps=0.5).run_standard_evaluation(inputs, labels)[0]

    Attributes:
        attack: Takes the model, inputs [B, ...] and labels [B], and returns points [B, ...].
        name: The name of the column in the report.
        about: Everything that the attack's result depends on, as plain values, for the report.

    Example:
        >>> import margin_ext
        >>> def flip(model, inputs, labels):  # an attack on the first coordinate
        ...     return inputs * torch.tensor([-1.0, 1.0])
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> data = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> report = margin_ext.measure(
        ...     model, data, p=2, bounds=[AttackDistance(flip, "flip")], progress=False
        ... )
        >>> report[2]["flip"]
        array([6.], dtype=float32)
    """

    attack: Callable[[Any, Tensor, Tensor], Tensor]
    name: str
    about: Mapping[str, Any] = field(default_factory=dict)

    kind: ClassVar[BoundKind] = "upper"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"name must be a word such as 'alma', got {self.name!r}")

    @property
    def title(self) -> str:
        """Its line in a report."""
        return f"{self.name} (upper bound)"

    def check(self, threat: ThreatModel) -> None:
        """Accept every threat model: distances are measured here."""

    def settings(self) -> dict[str, Any]:
        """What was said of the attack."""
        return dict(self.about)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> BoundResult:
        """Attack inputs [B, ...] of label [B].

        Raises:
            ValueError, TypeError: The attack does not return points of the inputs' shape.
        """
        found = self.attack(model, inputs, label)
        if not isinstance(found, Tensor):
            raise TypeError(f"the attack must return a tensor, got {type(found).__name__}")
        if found.shape != inputs.shape:
            raise ValueError(
                f"the attack must return points of the inputs' shape {list(inputs.shape)}, got "
                f"{list(found.shape)}"
            )
        point = found.detach().to(inputs)
        finite = point.flatten(1).isfinite().all(dim=1)
        point = torch.where(per_sample(finite, point), point, inputs)
        inside = threat.clamp(point)
        near = (inside - point).abs().flatten(1).amax(dim=1) <= _ROUNDING
        with torch.no_grad():
            wrong = logit_gap(model(inside), label).gap <= 0
        good = finite & near & wrong
        distance = torch.where(good, threat.distance(inside, inputs), math.inf)
        return BoundResult(distance, torch.where(per_sample(good, inside), inside, inputs))
