"""First-order margins by class rule, several norms in one pass (arXiv 1907.11780, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from margin_ext.checks import check_labels
from margin_ext.functional import first_order_margin
from margin_ext.models.checked_logits import checked_logits, class_order, require_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = [
    "ClassRule",
    "FirstOrderMargins",
    "check_class_rule",
    "first_order_margins",
]

ClassRule = Literal["all", "runner_up"] | int

# A floor that only guards the division: a margin is not to be capped by it.
NORM_FLOOR = 1e-30


class FirstOrderMargins(NamedTuple):
    """First-order margins of a batch for P threat models; everything detached.

    Attributes:
        logits: [B, C].
        gap: Logit gap to the runner-up [B].
        runner_up: [B].
        margin: [P, B], signed; infinite where every gradient is 0.
        nearest_class: The class that attains the margin [P, B].
        norm: Dual norm of that class's gradient [P, B].
        backward_passes: How many it took.
    """

    logits: Tensor
    gap: Tensor
    runner_up: Tensor
    margin: Tensor
    nearest_class: Tensor
    norm: Tensor
    backward_passes: int


def check_class_rule(rule: ClassRule) -> None:
    """Require "all", "runner_up" or a number of classes of at least 1."""
    if rule in ("all", "runner_up"):
        return
    if isinstance(rule, bool) or not isinstance(rule, int) or rule < 1:
        raise ValueError(
            f'classes must be "all", "runner_up" or a number of classes >= 1, got {rule!r}'
        )


def number_of_classes(rule: ClassRule, classes: int) -> int:
    """How many classes other than the label the rule looks at."""
    if rule == "all":
        return classes - 1
    return 1 if rule == "runner_up" else min(int(rule), classes - 1)


def first_order_margins(
    model: Model,
    inputs: Tensor,
    label: Tensor | None,
    *,
    threats: Sequence[ThreatModel],
    classes: ClassRule = "all",
    norm_bound: Sequence[float] | None = None,
) -> FirstOrderMargins:
    """Smallest gap-to-gradient-norm ratio over the classes that the rule names.

    One forward pass, then one backward pass for each rank in the order of the logits: in pass r
    every sample differentiates its gap to its own r-th class.

    Args:
        model: In eval mode.
        inputs: [B, ...].
        label: Class [B] from which the gaps are measured; None: the predicted class.
        threats: Norms and units; the data range is not used.
        classes: "all", "runner_up" or the number of top classes.
        norm_bound: For each threat model an upper bound on the dual norm of every gap's gradient
            (a global Lipschitz constant). Since the gaps grow with the rank, the passes end where
            gap / bound exceeds the margins found; the answer is the same.

    Raises:
        ValueError: Labels or logits do not fit, or a gradient's norm exceeds its bound.
    """
    inputs = inputs.detach().requires_grad_()
    logits = checked_logits(model, inputs)
    if label is None:
        label = logits.detach().argmax(dim=1)
    else:
        check_labels("target", label, logits.shape[1], None)
    order = class_order(logits, label)
    ranks = number_of_classes(classes, logits.shape[1])
    wide = torch.promote_types(torch.promote_types(logits.dtype, inputs.dtype), torch.float32)
    z = logits.to(wide)
    z_label = z.gather(1, label.unsqueeze(1))
    gaps = z_label - z.gather(1, order)  # [B, C - 1], ascending
    require_graph(gaps)

    batch = label.shape[0]
    best = z.new_full((len(threats), batch), torch.inf).detach()
    nearest = order[:, 0].expand(len(threats), batch).clone()
    best_norm = torch.zeros_like(best)
    passes = 0
    for rank in range(ranks):
        gap = gaps[:, rank].detach()
        if norm_bound is not None and rank > 0:
            bound = best.new_tensor(list(norm_bound)).unsqueeze(1)
            # Below 0 a smaller gradient means a lower margin, of which the bound says nothing.
            if bool(((gap >= 0) & (gap / bound >= best)).all()):
                break
        (grad,) = torch.autograd.grad(gaps[:, rank].sum(), inputs, retain_graph=rank + 1 < ranks)
        passes += 1
        for row, threat in enumerate(threats):
            found = first_order_margin(
                gap, grad, p=threat.p, eps=NORM_FLOOR, input_std=threat.input_std
            )
            if norm_bound is not None:
                _require_bound(found.norm, norm_bound[row], threat)
            margin = torch.where(found.norm > 0, found.margin, gap.sign() * torch.inf)
            # A gap of 0 lies on the boundary, with or without a gradient.
            margin = torch.where(gap == 0, 0.0, margin).to(best.dtype)
            better = margin < best[row]
            best[row] = torch.where(better, margin, best[row])
            nearest[row] = torch.where(better, order[:, rank], nearest[row])
            best_norm[row] = torch.where(better, found.norm.to(best.dtype), best_norm[row])
    return FirstOrderMargins(
        logits.detach(), gaps[:, 0].detach(), order[:, 0], best, nearest, best_norm, passes
    )


def _require_bound(norm: Tensor, bound: float, threat: ThreatModel) -> None:
    largest = float(norm.max()) if norm.numel() else 0.0
    # Roundings of the gradient are no contradiction.
    if largest > bound * (1 + 1e-3):
        raise ValueError(
            f"norm_bound is {bound:g} for {threat.name}, and a gradient of norm {largest:g} was "
            "found: it bounds nothing, so margins would come out wrong"
        )
