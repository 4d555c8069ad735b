"""The minimum-distance attacks of Foolbox on the same model, as a second opinion.

Foolbox, because its attacks run in batches on a plain module and keep to the data's range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.models.evaluation_mode import Model
from margin_ext.threat import ThreatModel

__all__ = ["FoolboxDistance"]


@register_bound
@dataclass(frozen=True, kw_only=True)
class FoolboxDistance:
    """The nearer of Foolbox's attacks: DDN and DeepFool for l2, FMN for linf.

    Needs the extra ``attacks`` and a threat model whose data range is two numbers.

    Attributes:
        steps: Steps of DDN and FMN.

    Example:
        >>> FoolboxDistance(steps=500).settings()
        {'steps': 500}
        >>> bounds = ["minimum_distance", FoolboxDistance()]
        >>> measure(model, data, data_range=(0.0, 1.0), bounds=bounds)  # doctest: +SKIP
    """

    steps: int = 300

    name: ClassVar[str] = "foolbox"
    title: ClassVar[str] = "Foolbox's distance (upper bound)"
    kind: ClassVar[BoundKind] = "upper"

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where these attacks do not exist for the threat model."""
        if threat.p not in (2.0, math.inf):
            raise ValueError(f"Foolbox's attacks are for p = 2 and p = inf, got {threat.p:g}")
        ends = threat.data_range or ()
        if not ends or not all(isinstance(end, (int, float)) for end in ends):
            raise ValueError(f"Foolbox needs a data range of two numbers, got {threat.data_range}")
        if threat.input_std is not None:
            raise ValueError("Foolbox measures in the inputs' own units: input_std must be None")

    def settings(self) -> dict[str, Any]:
        """Everything that the distances depend on."""
        return dataclasses.asdict(self)

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
            ImportError: Foolbox is not installed.
            TypeError: The model is no module.
        """
        self.check(threat)
        try:
            import foolbox
        except ImportError as error:
            raise ImportError(
                "further attacks need foolbox: pip install 'margin_ext[attacks]'"
            ) from error
        if not isinstance(model, nn.Module):
            raise TypeError(f"Foolbox attacks modules, got {type(model).__name__}")
        attacks = (
            [foolbox.attacks.LInfFMNAttack(steps=self.steps)]
            if math.isinf(threat.p)
            else [foolbox.attacks.DDNAttack(steps=self.steps), foolbox.attacks.L2DeepFoolAttack()]
        )
        wrapped = foolbox.PyTorchModel(model, bounds=threat.data_range, device=inputs.device)
        distance = torch.full(label.shape, math.inf, dtype=inputs.dtype, device=inputs.device)
        point = inputs.clone()
        for attack in attacks:
            _, found, success = attack(wrapped, inputs, label, epsilons=None)
            away = threat.distance(found, inputs)
            nearer = success & (away < distance)
            distance[nearer] = away[nearer]
            point[nearer] = found[nearer].detach()
        return BoundResult(distance, point)
