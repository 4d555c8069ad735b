"""Certified lower bounds on the margin of small ReLU networks, by backward linear relaxation.

Within a ball around the sample every ReLU lies between two lines; carried backward through the
network's affine layers they bound each logit gap from below by an affine function of the input,
whose minimum over an l_p ball is known in closed form (CROWN: Zhang et al., 2018). The largest
radius at which all bounds stay positive, found by bisection, is a lower bound on the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from margin_ext.input_std import channel_scale
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.norms import dual_exponent

__all__ = ["Certification", "certified_margins"]

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


@dataclass(frozen=True)
class Certification:
    """How to search for the radius.

    Attributes:
        bisections: Halvings of the bracket; 10 leave a thousandth of it.
        rows: Relaxation rows (samples x units) carried backward at a time: bounds the memory.
    """

    bisections: int = 10
    rows: int = 4096

    def __post_init__(self) -> None:
        if self.bisections < 1 or self.rows < 1:
            raise ValueError("bisections and rows must be at least 1")


def certified_margins(
    model: Model,
    inputs: Tensor,
    label: Tensor,
    *,
    p: float = 2,
    settings: Certification | None = None,
    input_std: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    """A radius [B] within which every input is classified as the label (up to rounding).

    Exact for linear models; for networks the looser the deeper and wider they are.

    Args:
        model: A Sequential (nested ones too) of affine layers and ReLUs.
        inputs: [B, ...].
        label: [B].
        p: Threat norm.
        settings: Search and memory.
        input_std: Standard deviation(s) of the loader's normalisation: radius in pixel units.

    Raises:
        TypeError: The model has a layer of another kind.
    """
    settings = settings or Certification()
    network = _Relaxation(_stages(model), p, settings.rows, input_std)
    with torch.no_grad():
        logits = checked_logits(model, inputs)
        radii = [
            _radius(network, inputs[i : i + 1], label[i : i + 1], logits[i : i + 1], settings)
            for i in range(inputs.shape[0])
        ]
    return torch.cat(radii) if radii else inputs.new_empty(0)


def _radius(
    network: _Relaxation, x: Tensor, label: Tensor, logits: Tensor, settings: Certification
) -> Tensor:
    classes = logits.shape[1]
    # [1, C - 1, C]: rows e_label - e_k.
    others = torch.arange(classes, device=x.device)[torch.arange(classes) != int(label)]
    spec = -torch.eye(classes, dtype=x.dtype, device=x.device)[others]
    spec[:, int(label)] += 1
    gaps = (spec @ logits[0]).clamp_min(0)

    def holds(eps: float) -> bool:
        return bool((network.lower(spec, x, eps) > 0).all())

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
    for _ in range(settings.bisections):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return x.new_full((1,), low)


def _stages(model: Model) -> list[list[nn.Module]]:
    """Affine layers between the ReLUs; the last stage gives the logits."""
    stages: list[list[nn.Module]] = [[]]
    for layer in _layers(model):
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


def _layers(model: Model) -> list[nn.Module]:
    if type(model) is nn.Sequential:
        return [layer for child in model for layer in _layers(child)]
    if not isinstance(model, nn.Module):
        raise TypeError("certified bounds are for modules, whose layers can be walked through")
    return [model]


class _Relaxation:
    """Linear bounds of a stack of affine stages with ReLUs in between, around one sample."""

    def __init__(
        self,
        stages: list[list[nn.Module]],
        p: float,
        rows: int,
        input_std: float | Sequence[float] | Tensor | None,
    ) -> None:
        self.stages = stages
        self.q = dual_exponent(p)
        self.rows = rows
        self.input_std = input_std

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
                rows[torch.arange(count), torch.arange(start, start + count)] = 1
                low.append(self._backward(rows, depth, bounds, shapes, x, eps))
                high.append(-self._backward(-rows, depth, bounds, shapes, x, eps))
            bounds.append((torch.cat(low), torch.cat(high)))
        return self._backward(spec, len(self.stages) - 1, bounds, shapes, x, eps)

    def norms(self, spec: Tensor, x: Tensor) -> Tensor:
        """Dual norms [S] of the gradients of spec @ logits at x."""
        points = x.repeat(spec.shape[0], *[1] * (x.dim() - 1)).requires_grad_()
        with torch.enable_grad():
            h = points
            for number, stage in enumerate(self.stages):
                h = _run(stage, h.relu() if number else h)
            (grad,) = torch.autograd.grad((h * spec).sum(), points)
        return self._dual_norm(grad)

    def _dual_norm(self, rows: Tensor) -> Tensor:
        if self.input_std is not None:
            rows = rows * channel_scale(self.input_std, rows)
        norm: Tensor = torch.linalg.vector_norm(rows.flatten(1), self.q, dim=1)
        return norm

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
        return constant + center - eps * self._dual_norm(rows)


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
