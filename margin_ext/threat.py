"""The threat model: which perturbations an adversary may make, and how their size is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from margin_ext.checks import shape_text
from margin_ext.functional.attack_step import attack_step
from margin_ext.functional.dual_direction import dual_direction
from margin_ext.functional.first_order_margin import first_order_margin
from margin_ext.input_std import InputStd, channel_scale, checked_std
from margin_ext.l1_step import into_l1_ball, l1_step
from margin_ext.norms import dual_exponent, norm_name
from margin_ext.per_sample import per_sample
from margin_ext.random_points import Draws, ball_noise, unit_ball

__all__ = ["DataRange", "ThreatModel", "check_data_range", "check_radius", "require_attackable"]

# Lowest and highest value, numbers or one value a channel, in the units that the model gets.
DataRange: TypeAlias = tuple[float | Tensor | Sequence[float], float | Tensor | Sequence[float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ThreatModel:
    """An l_p ball around each input, inside the range that data can have.

    Lengths are in pixel units where ``input_std`` is given, otherwise in the inputs' own units.
    Inputs are [B, ...], or [B, channels, ...] where a setting has one value a channel.

    Attributes:
        p: The norm, a real number of at least 1 or infinity.
        data_range: Lowest and highest value that an input can have, as numbers or one value a
            channel, in the units that the model gets. None: perturbed inputs may lie anywhere.
        input_std: The standard deviation(s) by which the loader divided the inputs.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> threat = ThreatModel(p=2, data_range=(0.0, 1.0))
        >>> x = torch.full((1, 4), 0.5)
        >>> threat.distance(x + 0.1, x)
        tensor([0.2000])
    """

    p: float = 2.0
    data_range: DataRange | None = None
    input_std: InputStd = None

    def __post_init__(self) -> None:
        dual_exponent(self.p)
        object.__setattr__(self, "p", float(self.p))
        checked_std(self.input_std)
        if self.data_range is not None:
            check_data_range(self.data_range)

    @property
    def q(self) -> float:
        """Exponent of the dual norm, in which input gradients are measured."""
        return dual_exponent(self.p)

    @property
    def name(self) -> str:
        """The name of the norm, such as "l2" or "linf"."""
        return norm_name(self.p)

    def settings(self) -> dict[str, Any]:
        """Plain values, for reports and to recognise stored results."""
        return {
            "p": self.name,
            "data_range": None if self.data_range is None else [_plain(e) for e in self.data_range],
            "input_std": _plain(self.input_std),
        }

    def without_range(self) -> ThreatModel:
        """The same norm, with perturbed inputs that may lie anywhere."""
        return replace(self, data_range=None)

    def dual_norm(self, grad: Tensor) -> Tensor:
        """||grad_i||_q of every sample [B]."""
        one = grad.new_ones(grad.shape[0])
        return first_order_margin(one, grad, p=self.p, eps=1.0, input_std=self.input_std).norm

    def step(self, grad: Tensor, length: Tensor, base: Tensor) -> Tensor:
        """Move base [B, ...] by length [B] along the direction in which grad [B, ...] rises most.

        The result may lie outside the data range: see :meth:`project` and :meth:`clamp`.
        """
        return dual_direction(grad, length, p=self.p, base=base, input_std=self.input_std)

    def attack_step(
        self,
        x: Tensor,
        grad: Tensor,
        length: Tensor,
        *,
        center: Tensor | None = None,
        radius: Tensor | None = None,
        sparse: bool = False,
        in_place: bool = False,
    ) -> Tensor:
        """:meth:`step` from x and then :meth:`project` (without radius :meth:`clamp`), in one op.

        Args:
            x: [B, ...].
            grad: [B, ...]; x moves in the direction in which it rises most.
            length: Length of the step [B].
            center: Center of the ball [B, ...]; None: x.
            radius: Radius of the ball [B]; None: no ball.
            sparse: For p = 1, with a radius: move several coordinates, and then to the nearest
                point of the ball within the data range (:func:`margin_ext.l1_step.l1_step`).
            in_place: Write the result into x.

        Example:
            >>> x, grad = torch.zeros(1, 2), torch.tensor([[3.0, -4.0]])
            >>> threat = ThreatModel(p=2, data_range=(-2.0, 2.0))
            >>> threat.attack_step(x, grad, torch.tensor([5.0]))
            tensor([[ 2., -2.]])
        """
        if sparse and self.p == 1 and radius is not None:
            return self._l1_step(x, grad, length, x if center is None else center, radius)
        if radius is None and self.data_range is None and not in_place:
            return self.step(grad, length, x)
        bounds = self.bounds(x)
        return attack_step(
            x,
            grad,
            length,
            center,
            radius,
            p=self.p,
            data_range=None if bounds is None else (bounds[0].reshape(-1), bounds[1].reshape(-1)),
            input_std=self.input_std,
            in_place=in_place,
        )

    def _l1_step(
        self, x: Tensor, grad: Tensor, length: Tensor, center: Tensor, radius: Tensor
    ) -> Tensor:
        scale, bounds = self._to_pixels(x), self.bounds(x)
        wide = torch.promote_types(x.dtype, torch.float32)

        def rows(in_pixels: Tensor) -> Tensor:
            return in_pixels.to(wide).expand_as(x).flatten(1)

        room = None
        if bounds is not None:
            ends = ((center - bounds[0]) * scale, (bounds[1] - center) * scale)
            room = rows(ends[0]).clamp_min(0), rows(ends[1]).clamp_min(0)
        offset = rows((x - center) * scale)
        found = l1_step(offset, rows(grad / scale), length, radius, room).reshape(x.shape)
        return self.clamp(center + (found / scale).to(x.dtype))

    def project(self, x: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        """Bring x [B, ...] into the ball of radius [B] around center, and into the data range.

        For p = 1, 2 and inf the point of the ball is the nearest one (p = 1: Duchi et al., 2008).
        For other norms x moves straight toward the center, which is not the nearest point. The
        ball comes first and then the range: both hold afterwards, because the range contains the
        center and clamping moves every coordinate toward it.

        Example:
            >>> x = torch.tensor([[3.0, 1.0]])
            >>> ThreatModel(p=1).project(x, torch.zeros(1, 2), torch.tensor([2.0]))
            tensor([[2., 0.]])
        """
        scale = self._to_pixels(x)
        delta = (x - center) * scale
        limit = radius.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        if self.p == math.inf:
            delta = torch.minimum(torch.maximum(delta, -limit), limit)
        elif self.p == 1:
            delta = into_l1_ball(delta.flatten(1), radius).reshape(delta.shape)
        else:
            norm = torch.linalg.vector_norm(delta.flatten(1), self.p, dim=1).reshape(limit.shape)
            delta = delta * (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
        return self.clamp(center + delta / scale)

    def clamp(self, x: Tensor) -> Tensor:
        """Bring x [B, ...] into the data range."""
        bounds = self.bounds(x)
        return x if bounds is None else torch.clamp(x, *bounds)

    def require_inside(self, x: Tensor, what: str = "inputs") -> None:
        """Require x [B, ...] in the data range, up to the rounding of a loader's arithmetic.

        Otherwise clamping would move inputs in other units far away. The check waits for the
        device.

        Raises:
            ValueError: An element lies outside.
        """
        bounds = self.bounds(x)
        if bounds is None or not x.numel():
            return
        low, high = bounds
        slack = max(1e-5, torch.finfo(x.dtype).eps) * (high - low)
        # NaN lies nowhere.
        if not bool(((x >= low - slack) & (x <= high + slack)).all()):
            raise ValueError(
                f"{what} lie in [{float(x.min()):.6g}, {float(x.max()):.6g}], outside the stated "
                f"data range {self.data_range}: are they normalised? Give the range in the units "
                "that the model gets"
            )

    def distance(self, x: Tensor, center: Tensor) -> Tensor:
        """||x_i - center_i||_p of every sample [B]."""
        delta = (x - center) * self._to_pixels(x)
        norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), self.p, dim=1)
        return norm

    def inward(self, direction: Tensor, x: Tensor) -> Tensor:
        """The direction [B, ...] without the coordinates along which x cannot move any farther."""
        bounds = self.bounds(x)
        if bounds is None:
            return direction
        low, high = bounds
        blocked = ((x <= low) & (direction < 0)) | ((x >= high) & (direction > 0))
        return direction.masked_fill(blocked, 0.0)

    def reach(self, x: Tensor) -> Tensor:
        """A distance [B] beyond which there is nothing to look for.

        It is that of the data range's farthest corner; without a range, a thousand times the length
        of x.
        """
        bounds = self.bounds(x)
        if bounds is not None:
            corner = torch.where(x - bounds[0] > bounds[1] - x, bounds[0], bounds[1])
            return self.distance(corner.to(x.dtype), x)
        length = self.distance(x, torch.zeros_like(x))
        return 1000 * torch.where(length > 0, length, 1.0)

    def random_point(self, center: Tensor, radius: float | Tensor, draws: Draws) -> Tensor:
        """One point a sample, uniform in the ball of this radius, then brought into the range.

        Args:
            center: [B, ...].
            radius: Radius of the ball, one number or [B].
            draws: The samples' random numbers.
        """
        noise = ball_noise(center, self.p, draws)
        radii = torch.as_tensor(radius, dtype=center.dtype, device=center.device)
        radii = radii.expand(center.shape[0])
        offset = per_sample(radii, center) * self.in_input_units(noise)
        return self.project(center + offset.to(center.dtype), center, radii)

    def noisy(self, center: Tensor, radius: Tensor) -> Tensor:
        """One point a sample, uniform in the ball of radius [B] and then brought into the range.

        The random numbers are seeded from torch's CPU generator, on every device.
        """
        seed = int(torch.randint(2**62, (), device="cpu"))
        generator = torch.Generator(center.device).manual_seed(seed)
        unit = unit_ball(len(center), center.shape[1:].numel(), self.p, generator)
        offset = per_sample(radius, center) * unit.reshape(center.shape)
        return self.clamp(center + self.in_input_units(offset.to(center.dtype)))

    def bounds(self, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """The data range as two tensors that broadcast over inputs; None where there is none."""
        if self.data_range is None:
            return None
        low, high = (_end(end, inputs) for end in self.data_range)
        return low, high

    def in_input_units(self, offset: Tensor) -> Tensor:
        """Convert an offset [B, ...] from pixel units to the units that the model gets."""
        return offset if self.input_std is None else offset * channel_scale(self.input_std, offset)

    def _to_pixels(self, inputs: Tensor) -> Tensor | float:
        return 1.0 if self.input_std is None else 1 / channel_scale(self.input_std, inputs)


def require_attackable(threat: ThreatModel) -> None:
    """Raise ValueError where the attacks do not exist for the norm.

    Example:
        >>> require_attackable(ThreatModel(p=3))
        Traceback (most recent call last):
            ...
        ValueError: attacks are for p = 1, p = 2 and p = inf, got 3
    """
    if threat.p not in (1.0, 2.0, math.inf):
        raise ValueError(f"attacks are for p = 1, p = 2 and p = inf, got {threat.p:g}")


def check_radius(eps: float) -> None:
    """Require a radius of at least 0, and finite.

    Example:
        >>> check_radius(-1.0)
        Traceback (most recent call last):
            ...
        ValueError: eps must be a number >= 0, got -1.0
    """
    if not eps >= 0 or math.isinf(eps):
        raise ValueError(f"eps must be a number >= 0, got {eps}")


def check_data_range(data_range: DataRange) -> None:
    """Require (lowest, highest) with lowest < highest and both finite.

    Example:
        >>> check_data_range((1.0, 0.0))
        Traceback (most recent call last):
            ...
        ValueError: data_range must be (lowest, highest) with lowest < highest and both finite, ...
    """
    try:
        low, high = (torch.as_tensor(end, dtype=torch.float64, device="cpu") for end in data_range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data_range must be (lowest, highest), got {data_range!r}") from error
    if not bool((low < high).all()) or not bool((low.isfinite() & high.isfinite()).all()):
        raise ValueError(
            f"data_range must be (lowest, highest) with lowest < highest and both finite, "
            f"got {data_range!r}"
        )


def _end(end: float | Tensor | Sequence[float], inputs: Tensor) -> Tensor:
    bound = torch.as_tensor(end, dtype=inputs.dtype, device=inputs.device)
    if bound.dim() == 1 and bound.numel() > 1:
        if inputs.dim() < 2 or bound.shape[0] != inputs.shape[1]:
            raise ValueError(
                "data_range must have numbers or one value a channel, got "
                f"{shape_text(bound)} for inputs {shape_text(inputs)}"
            )
        bound = bound.reshape(1, -1, *[1] * (inputs.dim() - 2))
    return bound


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # tensors, numpy's arrays and numbers
        return value.tolist()
    return list(value) if isinstance(value, Sequence) else value
