"""The logit gap, for labels of any form."""

from __future__ import annotations

from torch import Tensor

from margin_ext.functional.labels import labels_of
from margin_ext.loss_settings import refuse_unknown
from margin_ext.op_results import LogitGap

__all__ = ["logit_gap"]


def logit_gap(
    logits: Tensor,
    target: Tensor,
    *,
    nearest: Tensor | None = None,
    ignore_index: int = -100,
    validate: bool = False,
    **renamed: object,
) -> LogitGap:
    """Gap a = z_y - max_{k != y} z_k and the runner-up that attains the maximum.

    Ties: the lowest class. A NaN logit gives a NaN gap.

    For a target of probabilities the gap is that of :func:`soft_gap`, and the runner-up is the
    class with the largest logit among all but the target's most probable class.

    Args:
        logits: [B, C], C >= 2, or dense, [B, C, d1, ...].
        target: int64 [B] or [B, d1, ...], or probabilities of the shape of logits.
        nearest: int64 [B] or [B, d1, ...], classes to measure the gap to in place of the
            runner-up; not with probabilities.
        ignore_index: Samples (positions) with this label have the gap NaN and runner-up -1, and no
            gradient.
        validate: On CPU labels are always checked. On CUDA a label out of range makes its sample
            NaN; ``validate=True`` checks there too, and synchronises.
        **renamed: None; keywords of version 0.1 get an error that names the new one.

    Raises:
        ValueError, TypeError: Shapes or types do not fit, or a label is out of range.

    Example:
        >>> logit_gap(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        LogitGap(gap=tensor([1.]), runner_up=tensor([2]))
    """
    refuse_unknown(renamed)
    labels = labels_of(logits, target, None, ignore_index, "mean", validate)
    return labels.logit_gap(logits, nearest)
