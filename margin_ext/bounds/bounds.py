"""Values beside the first-order margin: from above, from below, and the authors' estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from margin_ext.attacks.minimum_distance import DistanceAttack, nearest_adversarial
from margin_ext.attacks.pgd import check_ball
from margin_ext.bounds.certified import Certification, certified_margins
from margin_ext.bounds.sampled import Sampling, sampled_margins
from margin_ext.models.evaluation_mode import Model
from margin_ext.threat import DataRange

__all__ = ["BoundName", "Bounds"]

BoundName = Literal["certified", "attack", "sampled"]


@dataclass(frozen=True)
class Bounds:
    """Which of them to measure, and how.

    Attributes:
        names: From "certified", "attack" and "sampled".
        attack: Settings of the distance attack.
        sampling: Settings of the sampled estimate.
        certification: Settings of the certified bound.
        data_range: The data's box, for the attack and for clipped samples.
        input_std: Standard deviation(s) of the loader's normalisation.
        seed: Of the sampled points.
    """

    names: Sequence[BoundName] = ()
    attack: DistanceAttack = field(default_factory=DistanceAttack)
    sampling: Sampling = field(default_factory=Sampling)
    certification: Certification = field(default_factory=Certification)
    data_range: DataRange | None = None
    input_std: float | Sequence[float] | Tensor | None = None
    seed: int = 0

    def check(self, norms: Sequence[float]) -> None:
        """Raise ValueError where a bound is unknown or not available for a norm."""
        unknown = set(self.names) - {"certified", "attack", "sampled"}
        if unknown:
            raise ValueError(
                f'bounds must be from "certified", "attack" and "sampled", got {sorted(unknown)}'
            )
        if "attack" in self.names or "certified" in self.names:
            for p in norms:
                check_ball(p, 0.0)

    def settings_of(self, name: BoundName) -> DistanceAttack | Sampling | Certification:
        """The settings that a bound depends on."""
        if name == "attack":
            return self.attack
        return self.sampling if name == "sampled" else self.certification

    def measure(
        self,
        name: BoundName,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        indices: Sequence[int],
        p: float,
    ) -> Tensor:
        """Distances [B] of samples that are all on the label's side of the boundary.

        Args:
            name: Which one.
            model: In eval mode.
            inputs: [B, ...].
            label: [B].
            indices: Of the samples in the whole data [B], for the random numbers.
            p: Threat norm.
        """
        if name == "attack":
            return nearest_adversarial(
                model,
                inputs,
                label,
                p=p,
                settings=self.attack,
                data_range=self.data_range,
                input_std=self.input_std,
            ).distance
        if name == "sampled":
            return sampled_margins(
                model,
                inputs,
                label,
                p=p,
                settings=self.sampling,
                data_range=self.data_range,
                input_std=self.input_std,
                seed=self.seed,
                indices=indices,
            ).estimate
        return certified_margins(
            model, inputs, label, p=p, settings=self.certification, input_std=self.input_std
        )

    def columns(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        right: Tensor,
        first: int,
        p: float,
    ) -> dict[str, Tensor]:
        """Every bound [B] by name; 0 where the sample is already on the wrong side."""
        chosen = right.nonzero().squeeze(1)
        indices = [first + i for i in chosen.tolist()]
        columns: dict[str, Tensor] = {}
        for name in self.names:
            values = torch.zeros(label.shape[0], dtype=torch.float32, device=inputs.device)
            if inputs.dtype == torch.float64:
                values = values.double()
            if chosen.numel():
                found = self.measure(
                    name, model, inputs[chosen], label[chosen], indices=indices, p=p
                )
                values[chosen] = found.to(values.dtype)
            columns[name] = values
        return columns
