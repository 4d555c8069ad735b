"""Margins in PyTorch Lightning (extra ``lightning``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margin_ext.integrations.margin_figures import FigureOptions, margin_figures
from margin_ext.integrations.required import required

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning.pytorch import Callback, LightningModule, Trainer

    from margin_ext.loss import AverageMarginLoss
    from margin_ext.models.evaluation_mode import Model
else:
    Callback = required("lightning.pytorch", "lightning").Callback

__all__ = ["MarginCallback", "MarginTraining"]


class MarginCallback(Callback):
    """Measures margins and robust accuracy at validation, and logs them.

    The names are ``margin/average``, ``margin/minimum``, ``margin/accuracy`` and, for each
    radius, ``margin/robust_accuracy_<eps>``; ``ModelCheckpoint`` and ``EarlyStopping`` can monitor
    them. With several ranks each measures ``data`` as its own loader gives it, and the logged
    values are those of all samples together.

    Args:
        data: What :func:`margin_ext.measure` takes. None: the first validation loader.
        model: Takes the module and returns what maps inputs to logits; None: the module itself,
            by its ``forward``.
        limit: Samples to measure on each rank.
        every: Measure at every so many epochs.
        eps: Radii of robust accuracy; empty: it is not measured.
        measure_options: Further arguments of :func:`margin_ext.measure`, such as
            ``{"p": "inf", "input_std": std}``.
        attack_options: Further arguments of :func:`margin_ext.robust_accuracy`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = MarginCallback(limit=200, every=5, eps=(0.5,), measure_options={"p": 2})
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu")  # doctest: +SKIP
        >>> trainer.fit(module, train_loader, validation_loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        data: Any = None,
        *,
        model: Callable[[LightningModule], Model] | None = None,
        limit: int = 500,
        every: int = 1,
        eps: Sequence[float] = (),
        measure_options: dict[str, Any] | None = None,
        attack_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.data = data
        self.model = model
        self.limit = limit
        self.every = every
        self.options = FigureOptions(tuple(eps), measure_options, attack_options)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log, but not in the sanity check before training."""
        if trainer.sanity_checking or trainer.current_epoch % self.every:
            return
        figures = margin_figures(
            pl_module if self.model is None else self.model(pl_module),
            self._data(trainer),
            self.options,
            limit=self.limit,
            device=pl_module.device,
        )
        counted = torch.tensor([figures.samples], dtype=torch.float64, device=pl_module.device)
        values = torch.tensor(
            list(figures.values.values()), dtype=torch.float64, device=pl_module.device
        )
        if trainer.world_size > 1:
            every_count = trainer.strategy.all_gather(counted).reshape(-1, 1)
            every_value = trainer.strategy.all_gather(values).reshape(-1, len(values))
            values = (every_value * every_count).sum(0) / every_count.sum()
            place = list(figures.values).index("minimum")
            values[place] = every_value[:, place].min()
        for name, value in zip(figures.values, values.tolist(), strict=True):
            pl_module.log(f"margin/{name}", value, rank_zero_only=False, sync_dist=False)

    def _data(self, trainer: Trainer) -> Any:
        if self.data is not None:
            return self.data
        loaders = trainer.val_dataloaders
        if not loaders:
            raise ValueError("MarginCallback needs data=, or a validation loader of the Trainer")
        return loaders[0] if isinstance(loaders, (list, tuple)) else loaders


class MarginTraining:
    """A training step with :class:`AverageMarginLoss`, mixed into a LightningModule.

    The module has a ``criterion``, and its ``forward`` maps inputs to logits. Batches are
    (inputs, target)::

        class Classifier(MarginTraining, LightningModule):
            def __init__(self):
                super().__init__()
                self.net = make_network()
                self.criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, gradient="auto")

            def forward(self, inputs):
                return self.net(inputs)

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters())

    It logs ``train/loss``, ``train/average_margin``, ``train/minimum_margin`` and
    ``train/accuracy`` without synchronising. With several devices take ``strategy="ddp"``, and not
    its ``static_graph=True``.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> from margin_ext import AverageMarginLoss
        >>> class Linear(MarginTraining, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(2, 3)
        ...         self.criterion = AverageMarginLoss(tau=1.0)
        ...     def forward(self, inputs):
        ...         return self.net(inputs)
        >>> module = Linear()
        >>> trainer.fit(module, loader)  # doctest: +SKIP
    """

    criterion: AverageMarginLoss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        inputs, target = batch
        out = self.criterion.run(self, inputs, target)  # type: ignore[arg-type]
        statistics = out.statistics
        values = {
            "loss": out.loss.detach(),
            "average_margin": statistics.average_margin,
            "minimum_margin": statistics.minimum_margin,
            "accuracy": statistics.accuracy,
        }
        self.log_dict(  # type: ignore[attr-defined]
            {f"train/{name}": value for name, value in values.items()}, batch_size=len(target)
        )
        return out.loss
