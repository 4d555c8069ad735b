from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from margin_ext import AverageMarginLoss, orthogonality_penalty
from margin_ext.training import Objective, Recipe, TrainingLoop
from margin_ext.training.training_loop import DivergedError
from margin_ext.training.training_state import OtherSettingsError


def a_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3))


def some_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(50, 6, generator=generator)
    return x, x[:, :3].argmax(dim=1)


MARGIN = Objective(AverageMarginLoss(mu=0.5, tau=1.0), beta=1e-3)
RECIPE = Recipe(epochs=5, batch_size=16, learning_rate=0.1)


def a_training(path: Path, objective: Objective = MARGIN, recipe: Recipe = RECIPE) -> TrainingLoop:
    return TrainingLoop(a_model(), some_data(), objective, recipe, checkpoint=path)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 4, 7, 8, 13])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    whole = a_training(tmp_path / "whole.pt")
    assert list(whole.epochs()) == [1, 2, 3, 4, 5]

    steps = 0

    def count(samples: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            raise StoppedError

    stopped = a_training(tmp_path / "stopped.pt")
    with pytest.raises(StoppedError):
        list(stopped.epochs(count))
    again = a_training(tmp_path / "stopped.pt")
    # 50 samples in batches of 16: four steps an epoch. The epoch that was cut off is lost, and
    # the one before it is kept.
    assert again.epoch == (stop_after - 1) // 4
    list(again.epochs())
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert len(again.seconds) == 5


def test_other_settings_are_refused_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    a_training(path).save()
    with pytest.raises(OtherSettingsError, match=r"learning_rate: 0\.1 there, 0\.2 here"):
        a_training(path, recipe=Recipe(epochs=5, batch_size=16, learning_rate=0.2))
    with pytest.raises(OtherSettingsError, match="criterion"):
        a_training(path, objective=Objective(nn.CrossEntropyLoss(), beta=1e-3))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"model_state_dict": a_model().state_dict()}, path)
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        a_training(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no checkpoint"):
        a_training(path)


def test_divergence_is_told_and_the_last_good_state_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    training = a_training(path, recipe=Recipe(epochs=5, learning_rate=1e30))
    with pytest.raises(DivergedError, match=r"in epoch 2, step 1 of 1.* after epoch 1$"):
        list(training.epochs())
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 1
    assert all(bool(value.isfinite().all()) for value in state["model_state_dict"].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    training = a_training(path, recipe=Recipe(epochs=1, learning_rate=1e38, momentum=0.99))
    training.save()
    for parameter in training.model.parameters():
        parameter.register_hook(lambda grad: grad * 1e30)
    with pytest.raises(DivergedError, match="weights are no longer finite after epoch 1"):
        list(training.epochs())
    assert torch.load(path, weights_only=True)["epoch"] == 0


def test_every_sample_comes_once_an_epoch_in_another_order() -> None:
    first, second = RECIPE.order(50, 0), RECIPE.order(50, 1)
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert torch.equal(first, RECIPE.order(50, 0))
    assert not torch.equal(first, Recipe(epochs=5, seed=1).order(50, 0))


def test_the_rate_rises_and_falls() -> None:
    rates = [RECIPE.rate(i / 100) for i in range(101)]
    peak = rates.index(max(rates))
    assert peak == 20
    assert max(rates) == pytest.approx(0.1)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_the_objective_is_its_parts() -> None:
    model, (x, y) = a_model(), some_data()
    criterion = copy.deepcopy(MARGIN.criterion)
    wanted = criterion.run(model, x, y).loss + 1e-3 * orthogonality_penalty(model)
    torch.testing.assert_close(MARGIN.loss(model, x, y), wanted)
    plain = Objective(nn.CrossEntropyLoss())
    torch.testing.assert_close(plain.loss(model, x, y), nn.functional.cross_entropy(model(x), y))


def test_training_learns(tmp_path: Path) -> None:
    training = a_training(tmp_path / "s.pt", recipe=Recipe(epochs=60, batch_size=16))
    list(training.epochs())
    x, y = some_data()
    assert float((training.model(x).argmax(dim=1) == y).float().mean()) > 0.9
    assert training.seconds_per_epoch > 0
