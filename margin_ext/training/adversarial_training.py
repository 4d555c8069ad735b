"""Adversarial training, the peer of training for margins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from margin_ext.attacks.pgd import attack_gradient
from margin_ext.functional import logit_gap
from margin_ext.gradient_modes.boundary_memory import NOISE_OF_MEMORY, BoundaryMemory, Remembering
from margin_ext.gradient_modes.boundary_search import (
    BoundaryPoint,
    find_boundary,
    trained_point,
)
from margin_ext.gradient_modes.layer_state import inner_modules, state_kept
from margin_ext.gradient_modes.model_call import ModelCall
from margin_ext.gradient_modes.parallel import refuse_static_graph, without_ddp
from margin_ext.target_kinds import target_tensor
from margin_ext.threat import ThreatModel
from margin_ext.training.words import check_words
from margin_ext.training_steps import StepCounter, check_step_options, rise

__all__ = ["AdversarialOutput", "AdversarialTraining"]

# Radius of the noise before a search, in units of eps.
_SEARCH_NOISE = 0.8


class AdversarialOutput(NamedTuple):
    """What :meth:`AdversarialTraining.run` returns.

    Attributes:
        loss: Scalar; call ``backward()`` on it.
        logits: [B, C], those at the inputs; with ``clean=0``, where the model does not run there,
            those at the points.
        points: Where the cross-entropy was taken [B, ...], without a graph; in a step without a
            search the inputs.
        output: All that the model returned with these logits.
    """

    loss: Tensor
    logits: Tensor
    points: Tensor
    output: Any


@dataclass(frozen=True)
class AdversarialTraining(Remembering):
    """The cross-entropy at a point near the input that a few gradient steps make worse.

    With several steps it is projected gradient descent within the ball (Madry et al., arXiv
    1706.06083). With one step from a noisy start the point is not brought back into the ball, which
    prevents catastrophic overfitting (N-FGSM, de Jorge et al., arXiv 2202.01181). The gradient
    passes leave BatchNorm's running statistics alone.

    In a loop of your own: ``objective.run(model, inputs, target).loss.backward()``, as with
    :class:`margin_ext.AverageMarginLoss`. It is an objective for `Trial` too, in the place of
    `Objective`.

    Attributes:
        eps: Radius of the ball, in the threat model's units.
        steps: Gradient steps; each takes one pass forward and one backward to the inputs.
        noise: Radius of the uniform noise at the start, in units of eps (default: 0 for one step,
            1 for several; 0.8 with length="own").
        step: Length of a step, in units of eps (default: 1 for one step, 2.5 / steps for several).
        attack_loss: What the steps change: "cross_entropy" is raised, "gap" (the logit gap) is
            lowered. With length="own" the steps follow the gap.
        length: "radius" moves every sample by up to eps. "own" moves it a little beyond its own
            decision boundary, and by at most eps (MMA training, Ding et al., arXiv 1812.02637): the
            steps project it onto the plane of the gap's tangent, as `Distance` does.
        misclassified: Where "own" moves misclassified samples: "toward" their class, or "attack",
            away from it by eps.
        memory: Start each sample's steps, with half of the noise, where its last ones ended (ATTA,
            Zheng et al., arXiv 1912.11969, for a fixed radius). Then a single step ends in the
            ball too. Call :meth:`run` inside ``with objective.samples(indices):``, which says which
            samples of the data the batch holds; a `TrainingLoop` does. Not for inputs that
            augmentation changes.
        every: Search for points only in one of so many training steps; the others take the
            cross-entropy at the inputs. All calls up to the step of an optimizer count as one;
            under no_grad every call searches, and counts as none. Take a new objective for
            another training.
        warmup: Training steps in which the radius rises evenly from near 0; under no_grad it is
            whole. Some networks, such as small ReLU ones, do not begin to learn at the whole
            radius.
        clean: Weight of the cross-entropy at the input itself, from 0 to 1; the point's
            cross-entropy has the rest.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
        threat: Norm, range of the data and unit.

    Raises:
        ValueError: A setting is out of its range, or has no effect with the others.

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
    length: Literal["radius", "own"] = "radius"
    misclassified: Literal["toward", "attack"] = "toward"
    memory: bool = False
    every: int = 1
    warmup: int = 0
    clean: float = 0.0
    label_smoothing: float = 0.0
    threat: ThreatModel = field(default_factory=lambda: ThreatModel(p=2, data_range=(0.0, 1.0)))
    _memory: BoundaryMemory = field(
        default_factory=BoundaryMemory, init=False, repr=False, compare=False
    )
    _counter: StepCounter = field(
        default_factory=StepCounter, init=False, repr=False, compare=False
    )

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
        check_step_options(self.every, self.warmup)
        if not 0 <= self.clean <= 1:
            raise ValueError(f"clean must lie in [0, 1], got {self.clean}")
        if self.length == "own" and self.step is not None:
            raise ValueError(f'step={self.step} has no effect with length="own": leave it out')
        if self.length == "radius" and self.misclassified != "toward":
            raise ValueError(
                f'misclassified="{self.misclassified}" has no effect with length="radius", which '
                "moves all samples alike: leave it out"
            )

    def run(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        target: Tensor,
        *,
        call: Callable[[Any, Tensor], Any] | None = None,
        logits_fn: Callable[[Any], Tensor] | None = None,
        radius: Tensor | None = None,
    ) -> AdversarialOutput:
        """Run the model on a batch and compute the loss; ``inputs`` are not modified.

        Args:
            model: Maps inputs to finite logits [B, C]. It may be wrapped by torch.compile or
                DistributedDataParallel.
            inputs: [B, ...].
            target: int64 [B].
            call: Maps the model and inputs to what the model returns, for models that take more
                than the inputs.
            logits_fn: Takes the logits out of what the model returns.
            radius: A radius for each sample [B], in place of eps; ``warmup`` holds for it too.

        Raises:
            TypeError: The target is no tensor.
            RuntimeError: DistributedDataParallel(static_graph=True) stands anywhere but directly
                around the whole model.
            ValueError: Inputs lie outside the threat model's data range, or logits are not finite.

        Example:
            >>> model, x, y = nn.Linear(5, 3), torch.rand(4, 5), torch.tensor([0, 1, 2, 0])
            >>> AdversarialTraining(eps=0.5, clean=0.2).run(model, x, y).loss.backward()
        """
        target_tensor(target)
        turn, passes = self._next_step(), ModelCall(call, logits_fn)
        if turn and not self.clean:
            points = self._points(model, passes, inputs, target, radius)
            moved = passes.output(model, points)
            loss = self._cross_entropy(moved.class_logits, target)
            return AdversarialOutput(loss, moved.logits, points, moved.whole)
        first = passes.output(model, inputs)
        logits = first.class_logits
        loss, points = self._cross_entropy(logits, target), inputs.detach()
        if turn and self.clean < 1:
            points = self._points(model, passes, inputs, target, radius, logits)
            # The wrapper prepares its reducer once in a step.
            there = passes(without_ddp(model), points)
            loss = self.clean * loss + (1 - self.clean) * self._cross_entropy(there, target)
        return AdversarialOutput(loss, first.logits, points, first.whole)

    def loss(
        self, model: nn.Module, inputs: Tensor, target: Tensor, *, radius: Tensor | None = None
    ) -> Tensor:
        """The scalar to differentiate; arguments as in :meth:`run`."""
        return self.run(model, inputs, target, radius=radius).loss

    def points(
        self, model: nn.Module, inputs: Tensor, target: Tensor, *, radius: Tensor | None = None
    ) -> Tensor:
        """The points [B, ...] of a step with a search; arguments as in :meth:`run`.

        They count as no step; the radius is that of the step at hand, and under no_grad whole.
        """
        return self._points(model, ModelCall(), inputs, target, radius)

    def _points(
        self,
        model: Any,
        passes: ModelCall,
        inputs: Tensor,
        target: Tensor,
        radius: Tensor | None,
        logits: Tensor | None = None,
    ) -> Tensor:
        # No gradient of a parameter is asked for, so a wrapper has nothing to average.
        inner, part = without_ddp(model), self._rise()
        # One further inside would take the first input gradient for the step's backward.
        refuse_static_graph(inner)

        def run(x: Tensor) -> Tensor:
            return passes(inner, x)

        # Validation under no_grad has adversarial points too.
        with (
            state_kept(inner_modules(inner), "batch"),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            center, target = (
                t.clone() if t.is_inference() else t for t in (inputs.detach(), target)
            )
            self.threat.require_inside(center)
            if radius is None:
                radius = center.new_full(center.shape[:1], self.eps)
            radius = radius * part if part < 1 else radius
            if self.length == "radius":
                return self._in_ball(run, center, target, radius)
            attacked = None
            if self.misclassified == "attack":
                with torch.no_grad():
                    known = run(center) if logits is None else logits.detach()
                    attacked = logit_gap(known, target).gap <= 0
            found = self._search(run, center, target, radius)
            return trained_point(found, center, radius, self.threat, attacked)

    def _in_ball(
        self, model: Callable[[Tensor], Tensor], center: Tensor, target: Tensor, radius: Tensor
    ) -> Tensor:
        several = self.steps > 1
        length = (2.5 / self.steps if several else 1.0) if self.step is None else self.step
        # From epoch to epoch a single step could wander away.
        ball = (center, radius) if several or self.memory else (None, None)
        x = self._start(center, radius, default_noise=float(several))
        for _ in range(self.steps):
            _, grad = attack_gradient(model, x, target, self.attack_loss, keep_from_underflow=True)
            x = self.threat.attack_step(x, grad, radius * length, center=ball[0], radius=ball[1])
        if self.memory:
            self._memory.keep(x - center)
        return x

    def _search(
        self, model: Callable[[Tensor], Tensor], center: Tensor, target: Tensor, radius: Tensor
    ) -> BoundaryPoint:
        def gaps(x: Tensor) -> tuple[Tensor, Tensor]:
            gap, worse = attack_gradient(model, x, target, "gap")
            return gap, worse.neg_()

        start = self._start(center, radius, default_noise=_SEARCH_NOISE)
        found = find_boundary(gaps, center, start, radius, steps=self.steps, threat=self.threat)
        if self.memory:
            self._memory.keep(found.point - center)
        return found

    def _start(self, center: Tensor, radius: Tensor, *, default_noise: float) -> Tensor:
        noise, start = default_noise if self.noise is None else self.noise, center
        if self.memory:
            noise *= NOISE_OF_MEMORY
            start = center + self._memory.recall(center)
        return self.threat.noisy(start, radius * noise) if noise else self.threat.clamp(start)

    def _next_step(self) -> bool:
        """Whether this training step searches for points; under no_grad every call does."""
        if not (self._counts and torch.is_grad_enabled()):
            return True
        return self._counter.has_turn(self._counter.next_call(), self.every)

    @property
    def _counts(self) -> bool:
        return self.every > 1 or self.warmup > 0

    def _rise(self) -> float:
        """The part of the radius that the step at hand has; under no_grad the whole."""
        if not torch.is_grad_enabled():
            return 1.0
        return rise(max(self._counter.steps - 1, 0), self.warmup)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step: the memory, and the number of steps where it counts."""
        steps = {"steps": self._counter.steps} if self._counts else {}
        return {**super().state_dict(), **steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        super().load_state_dict(state)
        self._counter.steps = state.get("steps", 0)

    def settings(self) -> dict[str, Any]:
        """Words and numbers for a report, by which a checkpoint is recognised too."""
        names = [f.name for f in fields(self) if f.init and f.name != "threat"]
        own = {name: getattr(self, name) for name in names}
        return {"objective": "adversarial training", **own, "threat": self.threat.settings()}
