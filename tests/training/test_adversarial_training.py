"""Adversarial training: its points, its settings, and the command."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from margin_ext import AverageMarginLoss
from margin_ext.threat import ThreatModel
from margin_ext.training import AdversarialTraining
from training.small_images import SMALL, same_weights, train, weights

BOX = ThreatModel(p=2, data_range=(0.0, 1.0))


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 3)
    )
    return model, torch.rand(20, 3, 2, 2), torch.randint(3, (20,))


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("attack_loss", ["cross_entropy", "gap"])
def test_points_are_worse_and_stay_in_ball_and_range(p: float, attack_loss: Any) -> None:
    model, x, y = problem()
    threat = ThreatModel(p=p, data_range=(0.0, 1.0))
    eps = {1.0: 0.8, 2.0: 0.4}.get(p, 0.1)
    objective = AdversarialTraining(eps, 3, attack_loss=attack_loss, threat=threat)
    point = objective.points(model, x, y)
    assert not point.requires_grad
    assert float(threat.distance(point, x).max()) <= eps * (1 + 1e-5)
    assert float(point.min()) >= 0
    assert float(point.max()) <= 1
    assert cross_entropy(model(point), y) > cross_entropy(model(x), y) * 1.02


def test_one_step_is_along_the_gradient() -> None:
    model, x, y = problem()
    model.eval()
    inside = 0.3 + 0.4 * x
    point = AdversarialTraining(0.1, 1, threat=BOX).points(model, inside, y)
    twin = inside.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(twin), y, reduction="sum"), twin)
    unit = grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(point, inside + 0.1 * unit)


def test_one_step_from_noise_is_not_brought_back() -> None:
    model, x, y = problem()
    free = ThreatModel(p=2)
    point = AdversarialTraining(0.1, 1, noise=2.0, threat=free).points(model, x, y)
    distance = free.distance(point, x)
    assert float(distance.max()) > 0.11
    assert float(distance.max()) <= 0.3 * (1 + 1e-5)


def test_every_sample_can_have_a_radius_of_its_own() -> None:
    model, x, y = problem()
    radius = torch.linspace(0.01, 0.2, 20)
    inside = 0.3 + 0.4 * x
    point = AdversarialTraining(9.0, 1, threat=BOX).points(model, inside, y, radius=radius)
    torch.testing.assert_close(BOX.distance(point, inside), radius, rtol=1e-4, atol=1e-6)


def lengths_of_steps(objective: AdversarialTraining, steps: int) -> list[float]:
    """The longest way from the input in each step of a training."""
    model, x, y = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        out = objective.run(model, x, y)
        out.loss.backward()
        optimizer.step()
        found.append(float(objective.threat.distance(out.points, x).max()))
    return found


@pytest.mark.parametrize("length", ["radius", "own"])
def test_the_radius_rises_over_the_warmup(length: Any) -> None:
    free = ThreatModel(p=2)

    def objective() -> AdversarialTraining:
        # So far out that own lengths end at the radius too.
        return AdversarialTraining(0.01, 2, noise=0.0, length=length, warmup=4, threat=free)

    rising = [0.002, 0.004, 0.006, 0.008, 0.01, 0.01]
    first = objective()
    found = lengths_of_steps(first, 3)
    assert found == pytest.approx(rising[:3], rel=1e-3)
    # What is measured in between is no step, and has the whole radius.
    model, x, y = problem()
    with torch.no_grad():
        out = first.run(model, x, y)
    assert float(free.distance(out.points, x).max()) == pytest.approx(0.01, rel=1e-3)
    again = objective()
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert lengths_of_steps(again, 3) == pytest.approx(rising[3:], rel=1e-3)


@pytest.mark.parametrize("clean", [0.0, 0.3])
def test_points_in_every_second_step(clean: float) -> None:
    def objective() -> AdversarialTraining:
        return AdversarialTraining(0.1, 2, noise=0.0, clean=clean, every=2, threat=ThreatModel(p=2))

    first, whole = objective(), pytest.approx(0.1, rel=1e-3)
    assert lengths_of_steps(first, 3) == [whole, 0.0, whole]
    again = objective()
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert lengths_of_steps(again, 3) == [0.0, whole, 0.0]
    # Without points the loss is that at the inputs, and what is measured in between is no step.
    model, x, y = problem()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert float(first.threat.distance(first.run(model, x, y).points, x).max()) == 0
    with torch.no_grad():
        assert float(first.threat.distance(first.run(model, x, y).points, x).max()) == whole
    torch.testing.assert_close(first.loss(model, x, y), cross_entropy(model(x), y))


@pytest.mark.parametrize("options", [{"warmup": 4}, {"every": 2}], ids=str)
def test_a_copy_goes_on_in_another_process(options: dict[str, Any], tmp_path: Path) -> None:
    """There no optimizer has been counted yet."""
    objective = AdversarialTraining(0.01, 2, noise=0.0, threat=ThreatModel(p=2), **options)
    lengths_of_steps(objective, 2)
    kept = tmp_path / "objective.pickle"
    kept.write_bytes(pickle.dumps(objective))
    program = (
        "import pickle, sys; from pathlib import Path; "
        "from training.test_adversarial_training import lengths_of_steps; "
        "print(lengths_of_steps(pickle.loads(Path(sys.argv[1]).read_bytes()), 4))"
    )
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, str(kept)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tests,
    )
    found = [float(word) for word in done.stdout.strip().strip("[]").split(", ")]
    wanted = [0.006, 0.008, 0.01, 0.01] if "warmup" in options else [0.01, 0.0, 0.01, 0.0]
    assert found == pytest.approx(wanted, rel=1e-3)
    assert lengths_of_steps(copy.deepcopy(objective), 4) == pytest.approx(wanted, rel=1e-3)


def test_own_radii_rise_too() -> None:
    model, x, y = problem()
    free, radius = ThreatModel(p=2), torch.linspace(0.01, 0.2, 20)
    objective = AdversarialTraining(9.0, 1, warmup=1, threat=free)
    out = objective.run(model, x, y, radius=radius)
    torch.testing.assert_close(free.distance(out.points, x), radius / 2, rtol=1e-3, atol=1e-6)


def test_the_attack_leaves_running_statistics_alone() -> None:
    model, x, y = problem()
    before = copy.deepcopy(model.state_dict())
    AdversarialTraining(0.3, 3).points(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    AdversarialTraining(0.3, 3).loss(model, x, y).backward()
    assert int(model[2].num_batches_tracked) == 1


def test_the_clean_part_is_weighted() -> None:
    model, x, y = problem()
    model.eval()
    plain = cross_entropy(model(x), y, label_smoothing=0.1)
    one = AdversarialTraining(0.3, 1, label_smoothing=0.1)
    worse = one.loss(model, x, y)
    mixed = AdversarialTraining(0.3, 1, clean=0.25, label_smoothing=0.1).loss(model, x, y)
    torch.testing.assert_close(mixed, 0.25 * plain + 0.75 * worse)
    only = AdversarialTraining(0.3, 1, clean=1.0, label_smoothing=0.1).loss(model, x, y)
    torch.testing.assert_close(only, plain)


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_own_lengths_reach_beyond_the_boundary(p: float) -> None:
    """On a linear classifier one projection from any start is exact."""
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    x, y = torch.rand(20, 6, dtype=torch.float64), torch.randint(2, (20,))
    exact = AverageMarginLoss(p=p).run(model, x, y).margin
    right = exact > 0
    assert 0 < int(right.sum()) < 20
    eps = 1.5 * float(exact.abs().max())
    free = ThreatModel(p=p)
    for misclassified in ("toward", "attack"):
        objective = AdversarialTraining(
            eps, 1, length="own", misclassified=misclassified, threat=free
        )
        point = objective.points(model, x, y)
        length = (1.1 * exact.abs() + 0.2 * eps).clamp_max(eps)
        if misclassified == "attack":
            length = torch.where(right, length, eps)
        torch.testing.assert_close(free.distance(point, x), length)
        there = AverageMarginLoss(p=p).run(model, point, y).margin
        assert bool((there[right] < 0).all())
        assert bool((there[~right] > 0).all()) == (misclassified == "toward")


@pytest.mark.parametrize("fixed", [{"length": "own"}, {"step": 0.5}], ids=["own", "radius"])
def test_with_a_memory_the_steps_go_on_where_they_ended(fixed: dict[str, Any]) -> None:
    model, x, y = problem()
    model.eval()
    free, indices = ThreatModel(p=2), torch.arange(20) * 2

    def objective(**options: Any) -> AdversarialTraining:
        return AdversarialTraining(2.0, noise=0.0, threat=free, **fixed, **options)

    kept = objective(steps=1, memory=True)
    with pytest.raises(ValueError, match="needs the indices of the samples"):
        kept.loss(model, x, y)
    for steps in (1, 2, 3):
        with kept.samples(indices):
            found = kept.points(model, x, y)
        torch.testing.assert_close(found, objective(steps=steps).points(model, x, y))
    again = objective(steps=1, memory=True)
    again.load_state_dict(copy.deepcopy(kept.state_dict()))
    # Another batch holds them in another order.
    part = torch.tensor([7, 3])
    with kept.samples(indices[part]), again.samples(indices[part]):
        wanted = kept.points(model, x[part], y[part])
        torch.testing.assert_close(again.points(model, x[part], y[part]), wanted)
    torch.testing.assert_close(wanted, objective(steps=4).points(model, x, y)[part])
    assert objective().state_dict() == {}
    noisy = AdversarialTraining(2.0, memory=True, threat=free, **fixed)
    with noisy.samples(indices):
        first, second = noisy.points(model, x, y), noisy.points(model, x, y)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("length", ["radius", "own"])
@pytest.mark.parametrize("clean", [0.0, 0.3, 1.0])
def test_in_a_loop_of_ones_own(length: Any, clean: float) -> None:
    """With a model of more arguments, in 16 bits, wrapped, and in a validation."""
    model, x, y = problem()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor, scale: float) -> dict[str, Tensor]:
            return {"logits": scale * self.net(x)}

    objective = AdversarialTraining(0.3, clean=clean, length=length, threat=BOX)
    torch.manual_seed(1)
    wanted = objective.run(copy.deepcopy(model), x, y)
    torch.manual_seed(1)
    out = objective.run(
        Two(), x, y, call=lambda m, x: m(x, 1.0), logits_fn=lambda out: out["logits"]
    )
    torch.testing.assert_close(out.loss, wanted.loss)
    torch.testing.assert_close(out.points, wanted.points)
    assert set(out.output) == {"logits"}
    assert out.logits.shape == (20, 3)
    assert torch.equal(out.points, x) == (clean == 1)
    out.loss.backward()
    assert int(model[2].num_batches_tracked) == (2 if 0 < clean < 1 else 1)
    with torch.autocast("cpu", torch.bfloat16):
        objective.run(model, x, y).loss.backward()
    model.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            value = objective.run(model, x.clone(), y.clone())
            assert not value.loss.requires_grad
            assert torch.equal(value.points, x) == (clean == 1)


def test_float16_moves_samples_that_are_certain() -> None:
    """Their cross-entropy's gradient is smaller than float16 can hold; its direction is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))
    x = torch.rand(20, 12)
    y = model(x).argmax(1)
    for scale in (1.0, 200.0):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[2].weight *= scale
            twin[2].bias *= scale
            assert scale == 1 or float(cross_entropy(twin(x), y)) < 0.5
        objective = AdversarialTraining(0.1, 1, threat=ThreatModel(p=2))
        wanted = objective.points(twin, x, y)
        with torch.autocast("cpu", torch.float16):
            points = objective.points(twin, x, y)
        torch.testing.assert_close((points - x).flatten(1).norm(dim=1), torch.full((20,), 0.1))
        torch.testing.assert_close(points, wanted, atol=5e-3, rtol=0)


def test_inputs_outside_of_the_range_are_refused() -> None:
    """Clamping would move normalised images by many times eps, in silence."""
    model, x, y = problem()
    message = r"inputs lie in \[.*\], outside the stated data range \(0.0, 1.0\): are they norm"
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(0.1).run(model, 4 * x - 2, y)
    AdversarialTraining(0.1).run(model, x + 5e-6, y)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eps": 0.0}, "eps must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"step": 0.0}, "step must be above 0"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"warmup": 0.5}, "warmup must be a whole number of at least 0, got 0.5"),
        ({"clean": 1.5}, r"clean must lie in \[0, 1\]"),
        ({"length": "own", "step": 1.0}, 'step=1.0 has no effect with length="own"'),
        ({"misclassified": "attack"}, 'misclassified="attack" has no effect with length="radius"'),
        ({"length": "half"}, "length must be one of radius, own"),
        ({"attack_loss": "hinge"}, "attack_loss must be one of cross_entropy, gap"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(**{"eps": 1.0, **wrong})


def test_the_command_trains_and_goes_on(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, "--loss", "adversarial", "--adversarial-eps", "0.5", "--no-report")
    assert train(tmp_path / "whole", *words) == 0
    assert "adversarial, eps 0.5, steps 2" in capsys.readouterr().out
    # Four steps an epoch: the first two epochs end within the rise.
    constant = (*words, "--schedule", "constant", "--adversarial-warmup", "7")
    assert train(tmp_path / "longer", *constant, "--epochs", "2") == 0
    assert train(tmp_path / "longer", "--resume", "--epochs", "4") == 0
    assert train(tmp_path / "constant", *constant) == 0
    assert same_weights(tmp_path / "longer", tmp_path / "constant")
    more = ("--adversarial-noise", "2", "--adversarial-steps", "1", "--adversarial-clean", "0.2")
    assert train(tmp_path / "other", *words, *more, "--label-smoothing", "0.1") == 0
    assert not torch.equal(
        weights(tmp_path / "other")["1.weight"], weights(tmp_path / "whole")["1.weight"]
    )
    rising = (*words, "--adversarial-warmup")
    assert train(tmp_path / "rising", *rising, "8") == 0
    assert not same_weights(tmp_path / "rising", tmp_path / "whole")
    own = ("--adversarial-length", "own", "--adversarial-misclassified", "attack")
    assert train(tmp_path / "own", *words, *own) == 0
    assert not same_weights(tmp_path / "own", tmp_path / "whole")
    memory = (*own, "--adversarial-memory")
    assert train(tmp_path / "memory", *words, *memory) == 0
    assert not same_weights(tmp_path / "memory", tmp_path / "own")
    capsys.readouterr()
    assert train(tmp_path / "moved", *words, *memory, "--flip") == 2
    assert "adversarial_memory is for images that stay as they are" in capsys.readouterr().err
    recipe = ("--recipe", "robust", "--radius", "0.4", "--no-report")
    assert train(tmp_path / "recipe", *SMALL, *recipe) == 0
    # Its 100 steps would be longer than the training.
    assert same_weights(tmp_path / "recipe", tmp_path / "rising")
    assert train(tmp_path / "recipe", "--resume", "--epochs", "8") == 0
    capsys.readouterr()
    assert train(tmp_path / "long", *rising, "16") == 2
    assert "must be less than the 16 steps of the training" in capsys.readouterr().err
    assert train(tmp_path / "long", *SMALL, "--warmup", "16") == 2
    assert "warmup must be less than the 16 steps" in capsys.readouterr().err
    assert train(tmp_path / "none", *SMALL, "--loss", "adversarial") == 2
    assert "needs adversarial_eps" in capsys.readouterr().err


@pytest.mark.parametrize("clean", [0.0, 0.2])
def test_labels_that_are_no_tensor_are_refused(clean: float) -> None:
    labels = torch.tensor([0, 1, 2, 0]).numpy()
    objective = AdversarialTraining(eps=0.5, clean=clean)
    with pytest.raises(TypeError, match="target must be a tensor, got numpy"):
        objective.run(nn.Linear(5, 3), torch.rand(4, 5), labels)  # type: ignore[arg-type]
