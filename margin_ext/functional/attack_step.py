"""One step of an attack in one launch: direction, length, ball and data range."""

from __future__ import annotations

import torch
from torch import Tensor

from margin_ext.accumulation import accumulation_dtype
from margin_ext.checks import check_same_device
from margin_ext.functional.dispatch import compiled_for, fallback, flat_channel_scale
from margin_ext.input_std import InputStd
from margin_ext.norms import op_exponent

__all__ = ["attack_step"]


def attack_step(
    x: Tensor,
    grad: Tensor | None = None,
    length: Tensor | None = None,
    center: Tensor | None = None,
    radius: Tensor | None = None,
    *,
    p: float | str = 2,
    steepest: int = 1,
    data_range: tuple[Tensor, Tensor] | None = None,
    input_std: InputStd = None,
    in_place: bool = False,
) -> Tensor:
    """Move x by length_i along v(grad_i), then into the ball around center and the data range.

    v is the dual direction (see :func:`dual_direction`). For p = 1 (Duchi et al., 2008), 2 and
    infinity a point outside the ball moves to the nearest point of it, for other norms straight
    toward the center. The data range is applied last. The step is computed in float32 (float64 for
    float64) and rounded once. A sample whose gradient holds a NaN becomes NaN.

    The compiled op is not differentiable: where a gradient is needed, the reference is used.

    Args:
        x: [B, ...].
        grad: The shape and type of x, the objective's gradient with respect to x; None: no step.
        length: [B], in pixel units where input_std is given; it may be negative.
        center: The shape and type of x; None: x.
        radius: [B], of the ball, in the same units as length; None: no ball.
        p: The threat norm.
        steepest: For p = 1: how many coordinates share the step in equal parts. They are those with
            the largest gradients, and all that tie with the last of them.
        data_range: Lowest and highest value in the units of x, each [1] or one value a channel.
        input_std: The standard deviation(s) by which the loader divided the inputs.
        in_place: Write the result into x, which then must not require grad.

    Returns:
        The shape and type of x; x itself if in_place.

    Raises:
        ValueError: Shapes or types differ, steepest does not fit p or x, or x requires grad
            and would be overwritten.

    Example:
        >>> x, grad = torch.zeros(1, 2), torch.tensor([[3.0, -4.0]])
        >>> attack_step(x, grad, torch.tensor([5.0]), radius=torch.tensor([2.5]))
        tensor([[ 1.5000, -2.0000]])
    """
    tensors = {"grad": grad, "length": length, "center": center, "radius": radius}
    check_same_device("x", x, **tensors)
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, *tensors.values())
    )
    if differentiated and in_place:
        raise ValueError("attack_step(in_place=True) has no gradient: detach its tensors")
    if differentiated or not compiled_for(x):
        moved = fallback.attack_step(
            x,
            grad,
            length,
            center,
            radius,
            p=p,
            steepest=steepest,
            data_range=data_range,
            input_std=input_std,
        )
        return x.copy_(moved) if in_place else moved
    dtype = accumulation_dtype(x)
    low, high = (None, None) if data_range is None else (e.to(dtype) for e in data_range)
    arguments = (
        x,
        grad,
        None if length is None else length.to(dtype),
        center,
        None if radius is None else radius.to(dtype),
        op_exponent(p),
        steepest,
        low,
        high,
        flat_channel_scale(input_std, x),
    )
    if in_place:
        torch.ops.margin_ext.attack_step_(*arguments)
        if not torch.compiler.is_compiling():
            # Autograd then refuses the backward of a graph that has kept x.
            torch.autograd.graph.increment_version(x)
        return x
    moved_by_op: Tensor = torch.ops.margin_ext.attack_step(*arguments)
    return moved_by_op
