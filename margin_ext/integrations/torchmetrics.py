"""Margins and robust accuracy as metrics of torchmetrics (extra ``torchmetrics``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margin_ext.integrations.required import required
from margin_ext.measurement import robust_accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchmetrics import Metric

    from margin_ext.models.evaluation_mode import Model
else:
    Metric = required("torchmetrics", "torchmetrics").Metric

__all__ = ["AverageMargin", "MinimumMargin", "RobustAccuracy"]


class _MarginMetric(Metric):
    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    count: Tensor
    skipped: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("skipped", torch.tensor(0), dist_reduce_fx="sum")

    def _known(self, margin: Tensor) -> Tensor:
        """Count the margins; return where they are known."""
        if not isinstance(margin, Tensor) or not margin.dtype.is_floating_point:
            raise TypeError(
                f"margin must be a floating tensor, got {getattr(margin, 'dtype', type(margin))}"
            )
        known = ~margin.isnan()
        self.count += known.sum()
        self.skipped += margin.numel() - known.sum()
        return known


class AverageMargin(_MarginMetric):
    """The mean of all margins since the last reset, over all ranks.

    Give it the margins of each batch, such as ``out.margin`` of :meth:`AverageMarginLoss.run`.
    NaN margins (of steps and samples that the loss took no margin of) are left out and counted in
    ``skipped``. The mean of no margins is NaN.

    Args:
        **kwargs: Those of ``torchmetrics.Metric``.

    Over the batches of an epoch::

        average = AverageMargin()
        for inputs, target in loader:
            average.update(criterion.run(model, inputs, target).margin)
        print(average.compute())

    Example:
        >>> average = AverageMargin()
        >>> average.update(torch.tensor([1.0, 2.0]))
        >>> average.update(torch.tensor([6.0, torch.nan]))
        >>> average.compute(), average.skipped
        (tensor(3.), tensor(1))
    """

    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, margin: Tensor) -> None:
        """Add the margins [B] of a batch; nothing waits for a GPU."""
        known = self._known(margin)
        self.total += torch.where(known, margin.detach().to(torch.float64), 0.0).sum()

    def compute(self) -> Tensor:
        """The mean, float32."""
        return (self.total / self.count).float()


class MinimumMargin(_MarginMetric):
    """The smallest of all margins since the last reset, over all ranks.

    NaN margins are left out and counted in ``skipped``. The minimum of no margins is NaN.

    Args:
        **kwargs: Those of ``torchmetrics.Metric``.

    Example:
        >>> minimum = MinimumMargin()
        >>> minimum.update(torch.tensor([1.0, -2.0]))
        >>> minimum.compute()
        tensor(-2.)
    """

    minimum: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("minimum", torch.tensor(torch.inf), dist_reduce_fx="min")

    def update(self, margin: Tensor) -> None:
        """Take the margins [B] of a batch into account; nothing waits for a GPU."""
        known = self._known(margin)
        if margin.numel():
            smallest = torch.where(known, margin.detach().float(), torch.inf).min()
            self.minimum = torch.minimum(self.minimum, smallest)

    def compute(self) -> Tensor:
        """The minimum, float32."""
        return torch.where(self.count > 0, self.minimum, torch.nan)


class RobustAccuracy(Metric):
    """Accuracy under attack, as :func:`margin_ext.robust_accuracy` measures it, batch by batch.

    A sample counts at a radius if no attack and no random point of that radius broke it. The
    signs of gradient masking need the whole data at once: for these call
    :func:`margin_ext.robust_accuracy` itself, and do so before believing a figure.

    Args:
        eps: The radius, or several.
        options: Further arguments of :func:`margin_ext.robust_accuracy`, such as
            ``{"p": "inf", "data_range": (0, 1), "attacks": [PGD(steps=20)]}``.
        **kwargs: Those of ``torchmetrics.Metric``.

    Example:
        >>> robust = RobustAccuracy(eps=[0.01, 0.5], options={"p": 2})
        >>> inputs, target = torch.tensor([[3.0, 1.0], [1.1, 1.0]]), torch.tensor([0, 0])
        >>> robust.update(torch.nn.Flatten(), inputs, target)
        >>> robust.compute()
        tensor([1.0000, 0.5000])
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    robust: Tensor
    count: Tensor

    def __init__(
        self,
        eps: float | Sequence[float],
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = {"seed": 0, **(options or {})}
        self.single = isinstance(eps, (int, float))
        self.eps = (float(eps),) if isinstance(eps, (int, float)) else tuple(map(float, eps))
        if list(self.eps) != sorted(self.eps) or not self.eps:
            raise ValueError(f"eps must be one radius or several, ascending, got {eps}")
        self.add_state("robust", torch.zeros(len(self.eps), dtype=torch.int64), "sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, model: Model, inputs: Tensor, target: Tensor) -> None:
        """Attack a batch.

        Args:
            model: A module or a function from inputs to logits [B, C], attacked in eval mode.
            inputs: [B, ...].
            target: int64 [B].
        """
        # Attacks that are given by name have other random starts in each batch.
        options = {**self.options, "seed": self.options["seed"] + int(self.count)}
        found = robust_accuracy(
            model, (inputs, target), self.eps, diagnose_masking=False, progress=False, **options
        )
        shares = torch.tensor(found.curve("worst"), dtype=torch.float64)
        self.robust += (shares * len(target)).round().to(self.robust)
        self.count += len(target)

    def compute(self) -> Tensor:
        """Robust accuracy, float32: a scalar for one radius, [len(eps)] for several."""
        share = self.robust.float() / self.count
        return share[0] if self.single else share
