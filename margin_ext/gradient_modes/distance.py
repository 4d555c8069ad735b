"""The true margin: each sample is trained at its own distance to the boundary.

Tangents and secants can be bent by the training that looks at them. Here a short search goes to the
boundary, and the loss is taken where it ends: MMA training (Ding et al., arXiv 1812.02637) takes
the cross-entropy there; DyART (Xu et al., arXiv 2302.03015) differentiates the distance itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.gradient_mode import GradientMode, register_margin
from margin_ext.gradient_modes.boundary_memory import NOISE_OF_MEMORY, BoundaryMemory, Remembering
from margin_ext.gradient_modes.boundary_search import (
    BoundaryPoint,
    find_boundary,
    plane_distance,
    trained_point,
)
from margin_ext.gradient_modes.domain import has_nan, refuse_nan, threat_in_range
from margin_ext.gradient_modes.step import Step
from margin_ext.loss_options import LossOptions
from margin_ext.loss_settings import check_word
from margin_ext.op_results import MarginLoss
from margin_ext.threat import DataRange, check_data_range

__all__ = ["Distance"]

Form = Literal["cross_entropy", "envelope"]
Misclassified = Literal["toward", "attack"]


@dataclass(frozen=True)
class Distance(Remembering, GradientMode):
    """The signed distance to the decision boundary, as a few projections find it.

    Each projection takes one pass forward and one backward to the inputs. Boundaries beyond the
    radius are not seen: no margin exceeds it. The sign is that of the gap.

    Attributes:
        form: "cross_entropy": the loss is CE(x) + mu * (CE(x') - CE(x)), x' a little beyond the
            sample's own boundary: mu is the weight of the moved point, at most 1, and there is no
            regularizer. "envelope": the regularizer of the distance, whose gradient is that of the
            gap at the boundary's point, divided by the norm of its input gradient (envelope
            theorem): no second derivatives.
        steps: Projections.
        radius: The l_p length that is searched, in units of the loss's tau.
        noise: Radius of the uniform noise that the search starts from, in units of tau; 0 starts at
            the input and saves a pass.
        misclassified: Where "cross_entropy" takes misclassified samples: "toward" their class, to
            their own distance; "attack": away from it, by the whole radius. With "envelope" the
            regularizer decides what they contribute: the ramp nothing. With three classes or more
            their gradient is that of the last plane, even where the sample lies on its class's
            side of it and another class is in the way.
        data_range: Lowest and highest input, as the model gets it: the search stays inside. Inputs
            outside are an error on CPU, and on CUDA with ``validate``.
        memory: Start each sample's search, with half of the noise, where its last one ended.
            Call :meth:`run` inside ``with criterion.margin.samples(indices):``, which says which
            samples of the data the batch holds. All inputs are kept once more in memory. Not for
            inputs that augmentation changes, because their boundary lies elsewhere each time.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> criterion = AverageMarginLoss(margin=Distance(data_range=(0, 1)), tau=2.5, mu=0.8)
        >>> criterion.margin.reruns
        3
    """

    form: Form = "cross_entropy"
    steps: int = 2
    radius: float = 1.0
    noise: float = 0.8
    misclassified: Misclassified = "toward"
    data_range: DataRange | None = None
    memory: bool = False
    _memory: BoundaryMemory = field(
        default_factory=BoundaryMemory, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_word("form", self.form, Form)
        check_word("misclassified", self.misclassified, Misclassified)
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}")
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"radius must be above 0 and finite, got {self.radius}")
        if not (self.noise >= 0 and math.isfinite(self.noise)):
            raise ValueError(f"noise must be at least 0 and finite, got {self.noise}")
        if self.data_range is not None:
            check_data_range(self.data_range)

    @property
    def reruns(self) -> int:
        """See :class:`GradientMode`."""
        return self.steps + (1 if self.noise or self.memory else 0)

    def without_noise(self) -> Distance:
        """See :class:`GradientMode`."""
        return replace(self, noise=0.0, memory=False)

    def check(self, options: LossOptions) -> None:
        """See :class:`GradientMode`."""
        options.check_length('margin="distance" needs')
        if self.form == "envelope":
            return
        options.refuse_regularizer('Distance(form="cross_entropy")')
        weight = options.mu * options.every
        if weight > 1:
            raise ValueError(
                'with Distance(form="cross_entropy") mu (times every) is the weight of the '
                f"moved points against the clean ones and must be at most 1, got {weight:g}"
            )

    def __call__(self, step: Step) -> MarginLoss:
        """The loss; ``norm`` is that of the gradient at the last point.

        Raises:
            ValueError: The model is not known.
        """
        step.needs_model('margin="distance"', "moved")
        search = _Search(self, step)
        found = search.run()
        return search.envelope(found) if self.form == "envelope" else search.cross_entropy(found)


class _Search:
    """The search of one step, and the losses at its end."""

    def __init__(self, mode: Distance, step: Step) -> None:
        options = step.objective.options
        self.mode, self.step = mode, step
        self.center = step.inputs.detach()
        self.threat = threat_in_range(options, mode.data_range, self.center)
        self.gap = step.labels.gap(step.logits.detach(), step.nearest())
        wide = accumulation_dtype(self.center)
        length = mode.radius * options.tau
        self.radius = self.center.new_full(self.center.shape[:1], length, dtype=wide)
        self.validate = options.validate
        self.defined = not has_nan(step.logits, validate=options.validate)

    def run(self) -> BoundaryPoint:
        """Project."""
        mode, start = self.mode, self.step.inputs
        noise = mode.noise * self.step.objective.options.tau
        if mode.memory:
            noise *= NOISE_OF_MEMORY
            start = self.center + mode._memory.recall(self.center)
            start = start if noise else self.threat.clamp(start)
        if noise:
            start = self.threat.noisy(start.detach(), self.radius.new_full((), noise))
        found = find_boundary(
            self._gaps, self.center, start, self.radius, steps=mode.steps, threat=self.threat
        )
        if mode.memory:
            mode._memory.keep(found.point - self.center)
        return found

    def _gaps(self, point: Tensor) -> tuple[Tensor, Tensor]:
        if point is self.step.inputs:
            return self._gap_and_gradient(point, self.step.logits)
        point = point.detach().requires_grad_()
        gap, grad = self._gap_and_gradient(point, self.logits_at(point))
        # The graph of one projection is gone before the next one makes its own.
        return gap.detach(), grad

    def _gap_and_gradient(self, point: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gap [B] with its graph, and its input gradient without one."""
        objective, labels = self.step.objective, self.step.labels
        nearest = objective.nearest(logits, point, labels)
        grad = objective.input_gradient(logits, point, labels, nearest, create_graph=False)
        return labels.gap(logits, nearest), grad

    def logits_at(self, point: Tensor) -> Tensor:
        """The model's logits at moved inputs."""
        assert self.step.rerun is not None
        logits = self.step.rerun(point)
        if self.defined:
            refuse_nan(logits, "Distance", validate=self.validate)
        return logits

    def envelope(self, found: BoundaryPoint) -> MarginLoss:
        """The regularizer of the distance.

        The boundary's point moves with the parameters, but only along the boundary's normal, and
        by the change of the gap there divided by the norm of its gradient.
        """
        # What computed the inputs moves the point with them.
        inputs = self.step.inputs
        point = found.point + (inputs - inputs.detach())
        gap, grad = self._gap_and_gradient(point, self.logits_at(point))
        norm = self.threat.dual_norm(grad)
        distance = plane_distance(gap.detach(), grad, norm, self.center, found.point)
        margin = self._signed(distance, norm)
        moves = (norm > 0) & gap.isfinite()
        change = torch.where(moves, gap - gap.detach(), 0.0) / torch.where(moves, norm, 1.0)
        return self._loss(self.step.logits, margin + change, norm, None)

    def cross_entropy(self, found: BoundaryPoint) -> MarginLoss:
        """The cross-entropy beyond each sample's own boundary."""
        objective, labels = self.step.objective, self.step.labels
        attacked = self.gap <= 0 if self.mode.misclassified == "attack" else None
        point = trained_point(found, self.center, self.radius, self.threat, attacked)
        there = objective.label_losses(self.logits_at(point), labels)
        logits = self.step.logits
        # The clean part has no weight: it would come to 0 through a whole backward pass.
        logits = logits.detach() if objective.options.mu == 1 else logits
        term = there - objective.label_losses(logits, labels)
        margin = self._signed(found.distance, found.norm)
        return self._loss(logits, margin, found.norm, term)

    def _signed(self, distance: Tensor, norm: Tensor) -> Tensor:
        """Distances [B] with the sign of the gap; the radius where no plane was found."""
        # The gap to masked classes is infinite.
        size = torch.where((norm > 0) & ~self.gap.isinf(), distance.abs(), self.radius)
        size = torch.minimum(size, self.radius)
        return torch.where(self.gap.isnan(), math.nan, torch.where(self.gap < 0, -size, size))

    def _loss(
        self, logits: Tensor, margin: Tensor, norm: Tensor, term: Tensor | None
    ) -> MarginLoss:
        return self.step.objective.loss_of(
            logits, self.step.labels, margin=margin, gap=self.gap, norm=norm, term=term
        )


register_margin("distance", Distance)
