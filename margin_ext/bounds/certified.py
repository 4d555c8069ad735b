"""Certified lower bounds on the margin of small ReLU networks, by backward linear relaxation.

Within a ball around the sample every ReLU lies between two lines; carried backward through the
network's affine layers they bound each logit gap from below by an affine function of the input,
whose minimum over an l_p ball is known in closed form (CROWN: Zhang et al., arXiv 1811.00866). The
largest radius at which all bounds stay positive, found by bisection, is a lower bound on the
margin.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.plain_layers import plain_layers
from margin_ext.threat import ThreatModel

__all__ = ["Certified"]

# Layers that do something else in training mode.
_BY_MODE = (nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d)

# The logits' rounding at the sample, times this, is taken off the bounds in the whole ball.
_ROUNDINGS = 4.0

_TOO_NARROW = (
    "certified bounds are for float32 and float64: a narrower type's rounding can exceed them. "
    "Measure model.float() on inputs.float()"
)

_AFFINE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    nn.AvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
)


@register_bound
@dataclass(frozen=True, kw_only=True)
class Certified:
    """A radius within which every input is classified as the label.

    Exact for linear models; for networks the looser the deeper and wider they are. The data range
    is not used: the whole ball is certified. Everything is computed in float64, and the bounds on
    the gaps must exceed the rounding that the model's own logits show.

    Attributes:
        bisections: Halvings of the bracket; 10 leave a thousandth of it.
        rows: Relaxation rows (samples x units) carried backward at a time: bounds the memory.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> found = Certified(bisections=20)(model, x, label, threat=ThreatModel(p=2))
        >>> round(float(found.distance), 3)  # (3 - 1) / sqrt(2)
        1.414
    """

    bisections: int = 10
    rows: int = 4096

    name: ClassVar[str] = "certified"
    title: ClassVar[str] = "certified (lower bound)"
    kind: ClassVar[BoundKind] = "lower"

    def __post_init__(self) -> None:
        if self.bisections < 1 or self.rows < 1:
            raise ValueError("bisections and rows must be at least 1")

    def check(self, threat: ThreatModel) -> None:
        """Any norm will do."""

    def settings(self) -> dict[str, Any]:
        """Everything that the radii depend on."""
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
        """Certify a radius for each sample.

        Args:
            model: A Sequential (nested ones too) of affine layers and ReLUs, in eval mode.
            inputs: [B, ...].
            label: [B].
            threat: The norm; radii are in pixel units with its input_std.
            indices: Not used: nothing is random.

        Raises:
            TypeError: The model has a layer of another kind, hooks or a patched forward, or it
                computes in a type narrower than float32, whose rounding is not bounded here.
        """
        stages = _stages(model)
        parameters = [p for stage in stages for layer in stage for p in layer.parameters()]
        if min(_bits(tensor) for tensor in (inputs, *parameters)) < 32:
            raise TypeError(_TOO_NARROW)
        network = _Relaxation(stages, threat, self.rows)
        with torch.no_grad():
            logits = checked_logits(model, inputs).double()
            radii = [
                _radius(network, x, y, z, self.bisections)
                for x, y, z in zip(inputs.double().split(1), label, logits.split(1), strict=True)
            ]
        if not radii:
            return BoundResult(inputs.new_empty(0))
        found = torch.cat(radii)
        rounded = found.to(inputs.dtype)
        # Rounding to the inputs' type makes no radius larger.
        smaller = torch.nextafter(rounded, torch.zeros_like(rounded))
        return BoundResult(torch.where(rounded > found, smaller, rounded))


def _radius(
    network: _Relaxation, x: Tensor, label: Tensor, logits: Tensor, bisections: int
) -> Tensor:
    classes = logits.shape[1]
    wide = network.logits(x)
    slack = _ROUNDINGS * float((wide - logits).abs().max())
    # [1, C - 1, C]: rows e_label - e_k.
    every = torch.arange(classes, device=x.device)
    others = every[every != int(label)]
    spec = -torch.eye(classes, dtype=x.dtype, device=x.device)[others]
    spec[:, int(label)] += 1
    gaps = (spec @ wide[0] - slack).clamp_min(0)

    def holds(eps: float) -> bool:
        return bool((network.lower(spec, x, eps) > slack).all())

    if not bool((gaps > 0).all()):
        return x.new_zeros(1)
    # At a vanishing radius the relaxation is the tangent: its distance sets the scale, where the
    # sample lies on no flat piece.
    tangent = float((gaps / network.norms(spec, x)).min())
    high = tangent if 0 < tangent < float("inf") else 1.0
    low = 0.0
    for _ in range(20):
        if holds(high):
            low, high = high, 2 * high
        elif low == 0:
            high /= 2
        else:
            break
    else:
        # Ever farther, or nowhere beyond rounding.
        return x.new_full((1,), low)
    high = min(high, 2 * low)
    for _ in range(bisections):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return x.new_full((1,), low)


def _stages(model: Model) -> list[list[nn.Module]]:
    """Affine layers between the ReLUs; the last stage gives the logits."""
    stages: list[list[nn.Module]] = [[]]
    for layer in plain_layers(model):
        if type(layer) in _BY_MODE and layer.training:
            raise TypeError(f"a {type(layer).__name__} is in training mode: call model.eval()")
        if type(layer) is nn.ReLU:
            stages.append([])
        elif type(layer) in _AFFINE and getattr(layer, "running_mean", 0) is not None:
            stages[-1].append(layer)
        else:
            raise TypeError(
                "certified bounds are for a Sequential of affine layers and ReLU, "
                f"got {type(layer).__name__}"
            )
    return stages


class _Relaxation:
    """Linear bounds of a stack of affine stages with ReLUs in between, around one sample."""

    def __init__(self, stages: list[list[nn.Module]], threat: ThreatModel, rows: int) -> None:
        # A copy computes in float64; the model is left as it is.
        self.stages = [[copy.deepcopy(layer).double() for layer in stage] for stage in stages]
        self.threat = threat
        self.rows = rows

    def logits(self, x: Tensor) -> Tensor:
        """The network's output [1, C] at x [1, ...]."""
        h = x
        for number, stage in enumerate(self.stages):
            h = _run(stage, h.relu() if number else h)
        return h

    def lower(self, spec: Tensor, x: Tensor, eps: float) -> Tensor:
        """Lower bounds [S] of spec @ logits over the ball of radius eps around x [1, ...]."""
        bounds: list[tuple[Tensor, Tensor]] = []
        shapes = self._shapes(x)
        for depth in range(len(self.stages) - 1):
            units = int(shapes[depth][1:].numel())
            low, high = [], []
            for start in range(0, units, self.rows):
                count = min(self.rows, units - start)
                rows = torch.zeros(count, units, dtype=x.dtype, device=x.device)
                index = torch.arange(count, device=x.device)
                rows[index, start + index] = 1
                low.append(self._backward(rows, depth, bounds, shapes, x, eps))
                high.append(-self._backward(-rows, depth, bounds, shapes, x, eps))
            bounds.append((torch.cat(low), torch.cat(high)))
        return self._backward(spec, len(self.stages) - 1, bounds, shapes, x, eps)

    def norms(self, spec: Tensor, x: Tensor) -> Tensor:
        """Dual norms [S] of the gradients of spec @ logits at x."""
        points = x.repeat(spec.shape[0], *[1] * (x.dim() - 1)).requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad((self.logits(points) * spec).sum(), points)
        return self.threat.dual_norm(grad)

    def _shapes(self, x: Tensor) -> list[torch.Size]:
        shapes = []
        h = x
        for number, stage in enumerate(self.stages):
            h = _run(stage, h.relu() if number else h)
            shapes.append(h.shape)
        return shapes

    def _backward(
        self,
        rows: Tensor,
        depth: int,
        bounds: list[tuple[Tensor, Tensor]],
        shapes: list[torch.Size],
        x: Tensor,
        eps: float,
    ) -> Tensor:
        """Lower bounds of rows [S, units] times the output of stage ``depth``."""
        constant = rows.new_zeros(rows.shape[0])
        for number in range(depth, -1, -1):
            inputs = x.shape if number == 0 else shapes[number - 1]
            rows, offset = _through(self.stages[number], rows, inputs, shapes[number])
            constant = constant + offset
            if number:
                rows, offset = _relu_lines(rows.flatten(1), *bounds[number - 1])
                constant = constant + offset
        center = (rows.flatten(1) * x.flatten(1)).sum(dim=1)
        return constant + center - eps * self.threat.dual_norm(rows)


def _bits(tensor: Tensor) -> int:
    return torch.finfo(tensor.dtype).bits


def _run(stage: list[nn.Module], h: Tensor) -> Tensor:
    for layer in stage:
        h = layer(h)
    return h


def _through(
    stage: list[nn.Module], rows: Tensor, inputs: torch.Size, outputs: torch.Size
) -> tuple[Tensor, Tensor]:
    """Rows [S, ...] of a linear form on an affine map's output as a form on its input.

    The map is W h + b: the form is rows @ W, which is what a backward pass gives at any input, and
    the constant rows @ b, where b is the output at 0.
    """
    with torch.enable_grad():
        zero = rows.new_zeros(rows.shape[0], *inputs[1:]).requires_grad_()
        out = _run(stage, zero)
        cotangent = rows.reshape(rows.shape[0], *outputs[1:])
        (pulled,) = torch.autograd.grad(out, zero, cotangent)
    return pulled, (cotangent * out.detach()).flatten(1).sum(dim=1)


def _relu_lines(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A lower bound of rows [S, units] @ relu(h) for low <= h <= high: slopes and constant."""
    unsure = (low < 0) & (high > 0)
    width = torch.where(unsure, high - low, 1.0)
    above = torch.where(unsure, high / width, (low >= 0).to(low.dtype))
    intercept = torch.where(unsure, -low * high / width, 0.0)
    # The steeper of the two lines below, by area.
    below = torch.where(unsure, (high > -low).to(low.dtype), (low >= 0).to(low.dtype))
    negative = rows.clamp_max(0)
    return rows.clamp_min(0) * below + negative * above, negative @ intercept
