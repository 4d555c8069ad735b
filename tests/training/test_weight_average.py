"""The average of the weights: its values, BatchNorm's statistics, and going on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from margin_ext import Additive, AdversarialTraining, AverageMarginLoss, Distance
from margin_ext.threat import ThreatModel
from margin_ext.training import Objective, Recipe, TrainingLoop
from margin_ext.training.weight_average import WeightAverage
from training.small_images import SMALL, checkpoint, same_weights, train


def a_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.2),
        nn.Linear(12, 3),
    )  # fmt: skip


def some_data() -> tuple[Tensor, Tensor]:
    x = 3 * torch.rand(50, 6, generator=torch.Generator().manual_seed(2)) + 1
    return x, x[:, :3].argmax(dim=1)


def margin_loss(**options: Any) -> Callable[[float], Objective]:
    return lambda smoothing: Objective(
        AverageMarginLoss(tau=0.5, label_smoothing=smoothing, **options)
    )


def with_memory(smoothing: float) -> Objective:
    """Each has its own, since a memory is that of one training."""
    return margin_loss(margin=Distance(steps=1, memory=True), mu=0.8)(smoothing)


FREE = ThreatModel(p=2)
OBJECTIVES: dict[str, Callable[[float], Any]] = {
    "cross_entropy": lambda s: Objective(nn.CrossEntropyLoss(label_smoothing=s)),
    "first_order": margin_loss(),
    "secant": margin_loss(margin="secant"),
    "distance": margin_loss(margin="distance", mu=0.8),
    "memory": with_memory,
    "envelope": margin_loss(margin=Distance(form="envelope")),
    "additive": margin_loss(margin=Additive(noise=1.0)),
    "logit_gap": margin_loss(margin="logit_gap"),
    "adversarial": lambda s: AdversarialTraining(0.5, label_smoothing=s, threat=FREE),
    "own": lambda s: AdversarialTraining(
        0.5, length="own", clean=0.2, label_smoothing=s, threat=FREE
    ),
    "own memory": lambda s: AdversarialTraining(
        0.5, length="own", memory=True, label_smoothing=s, threat=FREE
    ),
}


def a_loop(path: Path, objective: Any = None, **changed: float) -> TrainingLoop:
    recipe = Recipe(**{"epochs": 3, "batch_size": 16, "weight_average": 0.8, **changed})  # type: ignore[arg-type]
    objective = objective or OBJECTIVES["cross_entropy"](0.0)
    return TrainingLoop(a_model(), some_data(), objective, recipe, checkpoint=path)


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path: Path) -> None:
    loop = a_loop(tmp_path / "c.pt")
    seen: list[Tensor] = [loop.model[1].weight.detach().clone()]
    list(loop.epochs(lambda _: seen.append(loop.model[1].weight.detach().clone())))
    wanted = seen[0]
    for step, weight in enumerate(seen[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * weight
    torch.testing.assert_close(loop.result[1].weight, wanted)
    assert not torch.equal(loop.result[1].weight, loop.model[1].weight)
    # The training itself is that without an average.
    plain = a_loop(tmp_path / "plain.pt", weight_average=0.0)
    list(plain.epochs())
    assert plain.result is plain.model
    assert torch.equal(plain.model[1].weight, loop.model[1].weight)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_statistics_are_those_of_the_averaged_weights(tmp_path: Path, name: str) -> None:
    loop = a_loop(tmp_path / "c.pt", OBJECTIVES[name](0.1))
    list(loop.epochs())
    assert loop.average is not None
    averaged, (x, _) = loop.average.model, some_data()
    assert not any(module.training for module in averaged.modules())
    hidden = averaged[1](x)
    batches = hidden.split(16)[:-1] + hidden.split(16)[-1:]
    mean = torch.stack([batch.mean(dim=0) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(averaged[2].running_mean, mean)
    assert averaged[2].momentum == 0.1
    moved = (loop.model[2].running_mean - averaged[2].running_mean).abs().max()
    assert float(moved) > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_are_smoothed(name: str) -> None:
    x, y = some_data()
    found = []
    for smoothing in (0.0, 0.3):
        torch.manual_seed(0)
        objective = OBJECTIVES[name](smoothing)
        with getattr(objective, "samples", lambda _: nullcontext())(torch.arange(len(x))):
            found.append(float(objective.loss(a_model(), x, y).detach()))
    assert abs(found[0] - found[1]) > 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole = a_loop(tmp_path / "whole.pt", OBJECTIVES[name](0.1))
    list(whole.epochs())
    stopped = a_loop(tmp_path / "stopped.pt", OBJECTIVES[name](0.1))
    epochs = stopped.epochs()
    assert [next(epochs), next(epochs)] == [1, 2]
    epochs.close()
    again = a_loop(tmp_path / "stopped.pt", OBJECTIVES[name](0.1))
    assert again.epoch == 1
    list(again.epochs())
    for one, other in ((whole.result, again.result), (whole.model, again.model)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


def test_buffers_other_than_batchnorms_are_the_models() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("count", torch.zeros(1))
    average = WeightAverage(model, 0.5)
    model.count += 7
    average.recompute_statistics(model, torch.rand(4, 2), 2)
    assert float(average.model.count) == 7


def test_the_command_keeps_both(here: Path, tmp_path: Path) -> None:
    words = (*SMALL, "--model", "resnet", "--weight-average", "0.9", "--no-report")
    assert train(tmp_path / "one", *words, "--epochs", "2") == 0
    state = checkpoint(tmp_path / "one")
    assert state["model_state_dict"].keys() == state["trained_model_state_dict"].keys()
    name = "0.weight"
    assert not torch.equal(state["model_state_dict"][name], state["trained_model_state_dict"][name])
    assert train(tmp_path / "two", *words, "--epochs", "2", "--save-every", "0") == 0
    assert same_weights(tmp_path / "one", tmp_path / "two")


def test_decays_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"weight_average must lie in \[0, 1\), got 1"):
        Recipe(1, weight_average=1.0)
