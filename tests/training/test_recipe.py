"""Optimizers, schedules and precisions; every one of them goes on bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss
from margin_ext.data.augmentation import Augmentation
from margin_ext.models.resnet import resnet
from margin_ext.training import Objective, Recipe, RunOptions, TrainingLoop
from margin_ext.training.words import words_of


def test_all_but_the_number_of_epochs_must_agree() -> None:
    fields = set(Recipe.__dataclass_fields__)
    assert set(Recipe(3).settings()) == fields - {"epochs"}
    assert Recipe(3, optimizer="adam").settings()["optimizer"] == "adam"


def test_every_epoch_and_every_process_has_random_numbers_of_its_own() -> None:
    seeds = [
        Recipe(1, seed=seed).epoch_seed(epoch, rank)
        for seed in (0, 1, -1) for epoch in range(3) for rank in range(3)
    ]  # fmt: skip
    assert len(set(seeds)) == 27
    for seed in seeds:
        torch.manual_seed(seed)


@pytest.mark.parametrize("schedule", words_of(Recipe)["schedule"])
def test_rates(schedule: str) -> None:
    rates = [Recipe(1, learning_rate=0.1, schedule=schedule).rate(i / 100) for i in range(101)]
    assert max(rates) == pytest.approx(0.1)
    ends = {"warm_cosine": 0, "cosine": 0, "constant": 0.1, "step": 0.001}
    assert rates[-1] == pytest.approx(ends[schedule])
    peak = 20 if schedule == "warm_cosine" else 0
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if schedule == "step":
        assert rates[49:51] == pytest.approx([0.1, 0.01])
        assert rates[74:76] == pytest.approx([0.01, 0.001])
    if schedule == "cosine":
        assert rates[50] == pytest.approx(0.05)


@pytest.mark.parametrize("name", words_of(Recipe)["optimizer"])
def test_optimizers_are_torchs(name: str) -> None:
    layer = nn.Linear(2, 2)
    recipe = Recipe(1, learning_rate=0.3, momentum=0.7, weight_decay=0.01, optimizer=name)
    optimizer = recipe.make_optimizer(layer.parameters())
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    assert type(optimizer) is kinds[name]
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.3
    assert group["weight_decay"] == 0.01
    assert (group["momentum"] if name == "sgd" else group["betas"][0]) == 0.7
    without = Recipe(1, momentum=0.0, optimizer=name).make_optimizer(layer.parameters())
    assert not without.param_groups[0].get("nesterov")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer must be one of sgd, adam, adamw, got 'lbfgs'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ],
)
def test_recipes_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, **wrong})


def some_data() -> tuple[Tensor, Tensor]:
    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    return x, x.flatten(1)[:, :3].argmax(dim=1)


def a_training(path: Path, **changed: Any) -> TrainingLoop:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.4),
        nn.Linear(12, 3),
    )  # fmt: skip
    criterion = AverageMarginLoss(
        gradient="finite_difference", tau=1.0, fraction=0.6, every=2, batchnorm="running"
    )
    return TrainingLoop(
        model,
        some_data(),
        Objective(criterion),
        Recipe(**{"epochs": 4, "batch_size": 11, **changed}),
        checkpoint=path,
        options=RunOptions(augment=Augmentation(1, True)),
    )


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "adam", "learning_rate": 0.01, "schedule": "step"},
        {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
        {"precision": "bfloat16"},
        {"precision": "float16"},
    ],
)
def test_all_that_is_random_goes_on_bit_for_bit(tmp_path: Path, changed: dict[str, Any]) -> None:
    whole = a_training(tmp_path / "whole.pt", **changed)
    drawn = torch.get_rng_state()
    list(whole.epochs())
    # The caller's random numbers are its own.
    assert torch.equal(torch.get_rng_state(), drawn)
    stopped = a_training(tmp_path / "stopped.pt", **changed)
    epochs = stopped.epochs()
    # 30 samples in batches of 11 are 3 steps an epoch: every=2 is in the middle of its turn.
    assert [next(epochs), next(epochs)] == [1, 2]
    epochs.close()
    again = a_training(tmp_path / "stopped.pt", **changed)
    assert again.epoch == 1
    torch.manual_seed(99)
    list(again.epochs())
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert again.losses == whole.losses
    assert all(math.isfinite(loss) for loss in whole.losses)


def test_half_precision_is_near_full(tmp_path: Path) -> None:
    states = {}
    for precision in ("float32", "bfloat16", "float16"):
        training = a_training(tmp_path / f"{precision}.pt", precision=precision)
        # Its usual first scale is so large that it skips the first steps.
        training.scaler = torch.amp.GradScaler("cpu", 16.0, enabled=training.scaler.is_enabled())
        list(training.epochs())
        states[precision] = training.model[1].weight.detach()
        assert states[precision].dtype == torch.float32
    full = states["float32"]
    for precision, most in (("bfloat16", 0.1), ("float16", 0.05)):
        error = float((states[precision] - full).norm() / full.norm())
        assert 0 < error < most, precision


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(tmp_path: Path) -> None:
    x, y = some_data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    wanted = float(nn.functional.cross_entropy(model(x), y).detach())
    objective = Objective(nn.CrossEntropyLoss())
    recipe = Recipe(1, batch_size=11, learning_rate=1e-9)
    training = TrainingLoop(model, (x, y), objective, recipe, checkpoint=tmp_path / "c.pt")
    list(training.epochs())
    assert training.losses == [pytest.approx(wanted, rel=1e-5)]


def test_shifted_images_are_parts_of_the_padded_ones() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 2, 5, 4) + 1
    shifted = Augmentation(crop=2)(images)
    assert shifted.shape == images.shape
    padded = nn.functional.pad(images, [2] * 4)
    places = set()
    for image, whole in zip(shifted, padded, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image, whole[:, row : row + 5, column : column + 4])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) == 25


def test_half_of_the_images_are_mirrored() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 2, 5, 4)
    flipped = Augmentation(flip=True)(images)
    same = (flipped == images).flatten(1).all(dim=1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert bool((same ^ mirrored).all())
    assert 60 < int(mirrored.sum()) < 140
    assert not Augmentation()
    with pytest.raises(ValueError, match="crop must be at least 0"):
        Augmentation(crop=-1)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 7, 9)])
def test_the_residual_network(shape: tuple[int, int, int]) -> None:
    model = resnet(shape, 7, blocks=1, width=4)
    x = torch.rand(3, *shape)
    assert model(x).shape == (3, 7)
    out = AverageMarginLoss().run(model, x, torch.arange(3))
    out.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert float(model[0].weight.grad.norm()) > 0


def test_the_residual_network_has_the_papers_depth() -> None:
    layers = [m for m in resnet().modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    # Without the shortcuts' 1x1 convolutions.
    assert sum(getattr(m, "kernel_size", 3) != (1, 1) for m in layers) == 14
