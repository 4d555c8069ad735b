"""Steps of l1 attacks: several coordinates at once, then the nearest point of ball and range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["into_l1_ball", "l1_step"]

# Of all coordinates in the first step; afterwards of those that differ from the center. These are
# the fractions of APGD in l1 (Croce and Hein, arXiv 2103.01208), which takes the second one now and
# then; here it is taken in every step.
_FIRST = 0.2
_OF_MOVED = 1 / 1.5
# Parts of the largest offset that count as no offset.
_NOTHING = 1e-6


def l1_step(
    offset: Tensor,
    grad: Tensor,
    length: Tensor,
    radius: Tensor,
    room: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The offset [B, D] from the center after one step.

    The steepest l1 step moves one coordinate, which a data range soon stops. This one moves the
    steepest few by the same amount. How few depends on how many have been moved already, so that
    points become sparse as a search goes on.

    Args:
        offset: Of the current point from the center of the ball [B, D].
        grad: [B, D]; the step goes where it rises.
        length: l1 length of the step [B].
        radius: Of the ball [B].
        room: How far each coordinate may lie below and above the center, both at least 0 and
            [B, D]; None: anywhere.

    Returns:
        [B, D]; NaN where the gradient has NaN.

    Example:
        >>> offset, grad = torch.zeros(1, 10), torch.arange(10.0).unsqueeze(0)
        >>> room = torch.zeros(1, 10), torch.full((1, 10), 0.4)
        >>> one = torch.ones(1)
        >>> l1_step(offset, grad, 2 * one, 0.6 * one, room)[0, -3:]  # two move, and lose the rest
        tensor([0.0000, 0.3000, 0.3000])
    """
    broken = grad.isnan().any(dim=1, keepdim=True)
    size = offset.abs()
    if room is not None:
        # Where the point already is at an end of the range there is nowhere to go.
        blocked = torch.where(grad < 0, -offset >= room[0], offset >= room[1])
        grad = grad.masked_fill(blocked, 0.0)
    first = max(1, round(_FIRST * offset.shape[1]))
    moved = (size > _NOTHING * size.amax(1, keepdim=True)).sum(1)
    # Always fewer, so that a point may end on one coordinate: for a linear model it has to.
    fewer = (moved * _OF_MOVED).ceil().long().minimum(moved - 1)
    count = torch.where(moved > 0, fewer, first).clamp(1, first)
    steepest = grad.abs().topk(first, dim=1)
    ranks = torch.arange(first, device=grad.device)
    chosen = (ranks < count.unsqueeze(1)) & (steepest.values > 0)
    amount = (length / count).to(offset.dtype).unsqueeze(1)
    signs = grad.gather(1, steepest.indices).sign().to(offset.dtype)
    step = torch.where(chosen, amount * signs, 0.0)
    moved_on = offset.scatter_add(1, steepest.indices, step)
    return into_l1_ball(moved_on, radius, room).masked_fill(broken, math.nan)


def into_l1_ball(
    offset: Tensor, radius: Tensor, room: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The nearest point of the l1 ball of radius [B], within the room, to every row [B, D].

    It is sign(offset) * min(max(|offset| - t, 0), room) with the smallest t >= 0 for which the l1
    norm is at most the radius. That norm falls with t, by one unit for every coordinate between its
    room and 0. t follows from the sorted values of t at which a coordinate leaves its room or
    reaches 0 (Duchi et al., 2008; with a range Croce and Hein, arXiv 2103.01208, section 2.2).

    Args:
        offset: [B, D].
        radius: [B].
        room: As in :func:`l1_step`.

    Example:
        >>> far = torch.tensor([[3.0, 1.0]])
        >>> into_l1_ball(far, torch.tensor([2.0]))
        tensor([[2., 0.]])
        >>> into_l1_ball(far, torch.tensor([2.0]), (torch.zeros(1, 2), torch.full((1, 2), 1.5)))
        tensor([[1.5000, 0.5000]])
    """
    size = offset.abs()
    space = math.inf if room is None else torch.where(offset < 0, *room)
    ends = [size] if room is None else [size, (size - space).clamp_min(0)]
    signs = torch.cat([torch.full_like(end, (-1) ** i) for i, end in enumerate(ends)], dim=1)
    breaks, order = torch.cat(ends, dim=1).sort(dim=1, descending=True)
    signs = signs.gather(1, order)
    # Between two values of t: how many coordinates shrink, and the norm as a line in t.
    shrinking, total = signs.cumsum(1), (signs * breaks).cumsum(1)
    following = torch.cat([breaks[:, 1:], torch.zeros_like(breaks[:, :1])], dim=1)
    limit = radius.to(offset.dtype).unsqueeze(1)
    # The first interval in which the norm reaches the radius.
    reached = total - shrinking * following >= limit
    place = reached.to(torch.int8).argmax(dim=1, keepdim=True)
    shift = (total.gather(1, place) - limit) / shrinking.gather(1, place).clamp_min(1)
    shift = torch.where(reached.any(1, keepdim=True), shift, 0.0).clamp_min(0)
    return offset.sign() * (size - shift).clamp_min(0).clamp_max(space)
