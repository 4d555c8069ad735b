"""Adversarial training, the peer of training for margins."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from margin_ext.attacks.pgd import attack_gradient
from margin_ext.gradient_modes.layer_state import inner_modules, state_kept
from margin_ext.random_points import unit_ball
from margin_ext.threat import ThreatModel
from margin_ext.training.words import check_words

__all__ = ["AdversarialTraining"]


@dataclass(frozen=True)
class AdversarialTraining:
    """The cross-entropy at a point near the input that a few gradient steps make worse.

    With several steps it is projected gradient descent within the ball (Madry et al., arXiv
    1706.06083). With one step from a noisy start the point is not brought back into the ball, which
    prevents catastrophic overfitting (N-FGSM, de Jorge et al., arXiv 2202.01181). The gradient
    passes leave BatchNorm's running statistics alone.

    It is an objective for `Trial`, in the place of `Objective`.

    Attributes:
        eps: Radius of the ball, in the threat model's units.
        steps: Gradient steps; each takes one pass forward and one backward to the inputs.
        noise: Radius of the uniform noise at the start, in units of eps (default: 0 for one step,
            1 for several).
        step: Length of a step, in units of eps (default: 1 for one step, 2.5 / steps for several).
        attack_loss: What the steps change: "cross_entropy" is raised, "gap" (the logit gap) is
            lowered.
        clean: Weight of the cross-entropy at the input itself, from 0 to 1; the rest is that of the
            point.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
        threat: Norm, range of the data and unit.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> objective = AdversarialTraining(eps=0.5, steps=1, threat=ThreatModel(p=2))
        >>> objective.points(model, torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([[2.6464, 1.3536]])
    """

    eps: float
    steps: int = 2
    noise: float | None = None
    step: float | None = None
    attack_loss: Literal["cross_entropy", "gap"] = "cross_entropy"
    clean: float = 0.0
    label_smoothing: float = 0.0
    threat: ThreatModel = field(default_factory=lambda: ThreatModel(p=2, data_range=(0.0, 1.0)))

    def __post_init__(self) -> None:
        check_words(self)
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, got {self.eps}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.noise is not None and not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"step must be above 0, got {self.step}")
        if not 0 <= self.clean <= 1:
            raise ValueError(f"clean must lie in [0, 1], got {self.clean}")

    def loss(
        self, model: nn.Module, inputs: Tensor, target: Tensor, *, radius: Tensor | None = None
    ) -> Tensor:
        """The scalar to differentiate, for inputs [B, ...] and target [B].

        Args:
            model: Maps inputs to logits [B, C].
            inputs: [B, ...].
            target: int64 [B].
            radius: A radius for each sample [B], in place of eps.
        """
        if self.clean == 1:
            return self._cross_entropy(model(inputs), target)
        worse = self._cross_entropy(
            model(self.points(model, inputs, target, radius=radius)), target
        )
        if not self.clean:
            return worse
        clean = self._cross_entropy(model(inputs), target)
        return self.clean * clean + (1 - self.clean) * worse

    def points(
        self, model: nn.Module, inputs: Tensor, target: Tensor, *, radius: Tensor | None = None
    ) -> Tensor:
        """The points [B, ...] at which the cross-entropy is taken; arguments as in `loss`."""
        # No gradient of a parameter is asked for, so a wrapper has nothing to average.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        several = self.steps > 1
        center = inputs.detach()
        if radius is None:
            radius = center.new_full(center.shape[:1], self.eps)
        noise = float(several) if self.noise is None else self.noise
        length = (2.5 / self.steps if several else 1.0) if self.step is None else self.step
        x = self._noisy(center, radius * noise) if noise else center
        with state_kept(inner_modules(inner), "batch"):
            for _ in range(self.steps):
                _, grad = attack_gradient(inner, x, target, self.attack_loss)
                x = self.threat.attack_step(
                    x,
                    grad,
                    radius * length,
                    center=center if several else None,
                    radius=radius if several else None,
                )
        return x

    def _noisy(self, center: Tensor, radius: Tensor) -> Tensor:
        # A seed from the CPU's random numbers, so that every device draws from the same ones.
        seed = int(torch.randint(2**62, ()))
        generator = torch.Generator(center.device).manual_seed(seed)
        unit = unit_ball(len(center), center[0].numel(), self.threat.p, generator)
        offset = radius.reshape(-1, *[1] * (center.dim() - 1)) * unit.reshape(center.shape)
        moved = center + self.threat.in_input_units(offset.to(center.dtype))
        return self.threat.clamp(moved)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def settings(self) -> dict[str, Any]:
        """Words and numbers for a report, by which a checkpoint is recognised too."""
        own = {name: value for name, value in asdict(self).items() if name != "threat"}
        return {"objective": "adversarial training", **own, "threat": self.threat.settings()}
