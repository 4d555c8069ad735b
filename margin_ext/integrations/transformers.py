"""Margins in the Trainer of Hugging Face transformers (extra ``transformers``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from margin_ext.integrations.margin_figures import FigureOptions, margin_figures
from margin_ext.integrations.required import required
from margin_ext.measurement.split_models import is_split
from margin_ext.ranks import all_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import Trainer, TrainerCallback

    from margin_ext.loss import AverageMarginLoss
else:
    _transformers = required("transformers", "transformers")
    Trainer, TrainerCallback = _transformers.Trainer, _transformers.TrainerCallback

__all__ = ["InputLogits", "MarginTrainer", "MarginTrainerCallback"]


class InputLogits(nn.Module):
    """A model of transformers as a function of one of its inputs, which gives the logits.

    Args:
        model: Takes its inputs by name and returns an output with ``logits``.
        input_name: Such as "pixel_values" or "inputs_embeds".
        fixed: Further inputs of the model, the same for each call.

    Example:
        >>> from types import SimpleNamespace
        >>> class Doubled(nn.Module):
        ...     def forward(self, pixel_values):
        ...         return SimpleNamespace(logits=2 * pixel_values)
        >>> InputLogits(Doubled())(torch.ones(1, 2))
        tensor([[2., 2.]])
    """

    def __init__(
        self,
        model: nn.Module,
        input_name: str = "pixel_values",
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.input_name = input_name
        self.fixed = dict(fixed or {})

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, ...]."""
        logits: Tensor = self.model(**{self.input_name: inputs}, **self.fixed).logits
        return logits


class MarginTrainer(Trainer):
    """A Trainer whose loss is an :class:`AverageMarginLoss`.

    Images (or any floating input) have margins in the unit of the input. Token ids have no
    distances: with ``input_ids`` in the batch, margins are those of a perturbation that is added
    to the embeddings, and tau is a distance there. Padded tokens are not perturbed. Batches carry
    their targets as ``labels``.

    Attention has fused kernels without a second derivative, so
    ``AverageMarginLoss(gradient="finite_difference")`` is the mode to begin with. The average and
    the minimum margin of the last batch are logged with the loss.

    Args:
        *args: Those of ``transformers.Trainer``.
        criterion: The loss.
        input_name: The floating input that margins are measured in; None: "pixel_values",
            "inputs_embeds" or "input_values", whichever the batch has, and otherwise the
            embeddings of "input_ids".
        **kwargs: Those of ``transformers.Trainer``.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> criterion = AverageMarginLoss(tau=1.0, gradient="finite_difference")
        >>> trainer = MarginTrainer(  # doctest: +SKIP
        ...     model, arguments, train_dataset=images, criterion=criterion
        ... )
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        *args: Any,
        criterion: AverageMarginLoss,
        input_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError(
                "give label_smoothing to AverageMarginLoss, not to TrainingArguments: "
                f"label_smoothing_factor is {self.args.label_smoothing_factor}"
            )
        self.criterion = criterion.to(self.args.device)
        self.input_name = input_name
        # compute_loss divides by the samples of all the step's batches, so Trainer need not.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The margin loss in training; the model's own loss in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = dict(inputs)
        labels = rest.pop("labels")
        name = self.input_name or _floating_input(rest)
        if name is None:
            embedding = self.accelerator.unwrap_model(model).get_input_embeddings()
            perturbed, call = _embedding_shift(embedding, rest)
        else:
            perturbed, call = rest.pop(name), _call_with(name, rest)
        out = self.criterion.run(model, perturbed, labels, call=call, normalizer=num_items_in_batch)
        return (out.loss, {"logits": out.logits}) if return_outputs else out.loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as ever, and add the margins of the last batch to the training loss."""
        statistics = self.criterion.statistics
        if "loss" in logs and statistics is not None:
            values = statistics.as_floats()
            logs = {
                **logs,
                "average_margin": values["average_margin"],
                "minimum_margin": values["minimum_margin"],
            }
        super().log(logs, *args, **kwargs)


def _call_with(name: str, rest: Mapping[str, Any]) -> Callable[[Any, Tensor], Tensor]:
    def call(net: Any, moved: Tensor) -> Tensor:
        logits: Tensor = net(**{name: moved}, **rest).logits
        return logits

    return call


def _embedding_shift(
    embedding: nn.Module, batch: Mapping[str, Any]
) -> tuple[Tensor, Callable[[Any, Tensor], Tensor]]:
    """A zero that is added to the embeddings of the tokens, and the call that adds it.

    A hook adds it, and the model still gets its token ids: some models find the last token of a
    sequence by them.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    weight: Any = embedding.weight
    shift = torch.zeros(*ids.shape, weight.shape[-1], dtype=weight.dtype, device=ids.device)

    def call(net: Any, moved: Tensor) -> Tensor:
        added = moved if mask is None else moved * mask.unsqueeze(-1).to(moved.dtype)
        hook = embedding.register_forward_hook(lambda module, args, output: output + added)
        try:
            logits: Tensor = net(**batch).logits
        finally:
            hook.remove()
        return logits

    return shift, call


def _floating_input(inputs: Mapping[str, Any]) -> str | None:
    for name in ("pixel_values", "inputs_embeds", "input_values"):
        if name in inputs:
            return name
    if "input_ids" not in inputs:
        raise ValueError(
            "MarginTrainer knows pixel_values, inputs_embeds, input_values and input_ids; name the "
            f"input that margins are measured in with input_name=, the batch has {sorted(inputs)}"
        )
    return None


class MarginTrainerCallback(TrainerCallback):
    """Measures margins and robust accuracy after each evaluation of a Trainer.

    They join the metrics that ``trainer.evaluate()`` returns and the log history, as
    ``eval_margin_average``, ``eval_margin_minimum``, ``eval_margin_accuracy`` and
    ``eval_margin_robust_accuracy_<eps>``.

    Args:
        data: (inputs, labels), or what else :func:`margin_ext.measure` takes.
        input_name: The model's input that they are.
        eps: Radii of robust accuracy; empty: it is not measured.
        measure_options: Further arguments of :func:`margin_ext.measure`.
        attack_options: Further arguments of :func:`margin_ext.robust_accuracy`.

    Example:
        >>> data = torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
        >>> callback = MarginTrainerCallback(data, eps=(0.5,))
        >>> trainer = Trainer(model, arguments, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.evaluate()["eval_margin_average"]  # doctest: +SKIP
    """

    def __init__(
        self,
        data: Any,
        *,
        input_name: str = "pixel_values",
        eps: Sequence[float] = (),
        measure_options: dict[str, Any] | None = None,
        attack_options: dict[str, Any] | None = None,
    ) -> None:
        self.data = data
        self.input_name = input_name
        self.options = FigureOptions(tuple(eps), measure_options, attack_options)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, metrics: Any, **kwargs: Any
    ) -> None:
        """Measure, and add to ``metrics``."""
        # The Trainer calls it on all ranks, which such a model asks for.
        ranks = {"ranks": all_ranks()} if is_split(model) else {}
        shown = InputLogits(model, self.input_name)
        figures = margin_figures(shown, self.data, self.options, **ranks)
        values = {f"eval_margin_{name}": value for name, value in figures.values.items()}
        metrics.update(values)
        state.log_history.append({**values, "step": state.global_step})
