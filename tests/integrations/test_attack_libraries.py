"""Models and attacks between margin_ext and Foolbox, AutoAttack and adv-lib."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from margin_ext import measure, robust_accuracy
from margin_ext.integrations.attack_distance import AttackDistance
from margin_ext.integrations.pixel_model import PixelModel
from tests.integrations.networks import small_data, small_network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def normalised_problem():
    """A network of normalised inputs with three channels, its inputs, and the same in pixels."""
    pixels = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    model = PixelModel(net, mean=MEAN, std=STD).eval()
    inputs = model.normalised(pixels)
    return net, model, inputs, pixels, net(inputs).argmax(dim=1)


def test_pixel_model_measures_what_input_std_does():
    net, model, inputs, pixels, target = normalised_problem()
    torch.testing.assert_close(model.to_pixels(inputs), pixels)
    by_std = measure(net, (inputs, target), p=(2, "inf"), input_std=STD)
    by_model = measure(model, (pixels, target), p=(2, "inf"))
    for p in (2.0, np.inf):
        np.testing.assert_allclose(by_std.norms[p].margin, by_model.norms[p].margin, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mean": 0.5, "std": 0.0}, "above 0"),
        ({"mean": 0.5, "std": None}, "std must be a number"),
        ({"mean": float("nan"), "std": 1.0}, "mean must be a finite number"),
        ({"mean": [[0.5]], "std": 1.0}, "mean must be a finite number or one a channel"),
    ],
)
def test_pixel_model_refuses(settings, told):
    with pytest.raises(ValueError, match=told):
        PixelModel(nn.Flatten(), **settings)


def test_pixel_model_of_other_channels():
    with pytest.raises(ValueError, match="have 3 channels, and the inputs have 1"):
        PixelModel(nn.Flatten(), mean=MEAN, std=STD)(torch.rand(2, 1, 4, 4))


def test_attack_distance_believes_nothing():
    net, (inputs, target) = small_network(), small_data()
    right = net(inputs).argmax(dim=1) == target
    inputs, target = inputs[right][:6], target[right][:6]
    far = torch.zeros_like(inputs)
    for i, label in enumerate(target.tolist()):
        far[i].view(-1)[(label + 1) % 3] = 1.0
    points = far.clone()
    points[0] = inputs[0]  # classified correctly
    points[1] = float("nan")
    points[2].view(-1)[5] = 1.5  # out of the range

    bound = AttackDistance(lambda model, x, y: points, "mine", {"steps": 3})
    report = measure(net, (inputs, target), bounds=[bound], data_range=(0.0, 1.0), batch_size=6)
    found = report.norms[2.0]["mine"]
    assert np.isinf(found[:3]).all()
    expected = (far - inputs).flatten(1).norm(dim=1)[3:]
    np.testing.assert_allclose(found[3:], expected, rtol=1e-5)
    assert "mine (upper bound)" in str(report)
    assert report.settings["mine"] == {"steps": 3}


@pytest.mark.parametrize(
    ("attack", "error", "told"),
    [
        (lambda model, x, y: None, TypeError, "must return a tensor, got NoneType"),
        (lambda model, x, y: x[:1], ValueError, "points of the inputs' shape"),
    ],
)
def test_attack_distance_refuses_other_results(attack, error, told):
    with pytest.raises(error, match=told):
        measure(small_network(), small_data(), bounds=[AttackDistance(attack, "mine")])


def test_attack_distance_needs_a_word():
    with pytest.raises(ValueError, match="name must be a word"):
        AttackDistance(lambda model, x, y: x, "my attack")


def test_foolbox_both_ways():
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox: extra attacks")
    from margin_ext.integrations.foolbox import from_foolbox, to_foolbox

    net, _, inputs, pixels, target = normalised_problem()
    theirs = to_foolbox(net, mean=MEAN, std=STD)
    assert theirs.bounds == (0.0, 1.0)
    attack = foolbox.attacks.DDNAttack(steps=50)
    _, found, success = attack(theirs, pixels, target, epsilons=None)
    assert success.all()
    distance = (found - pixels).flatten(1).norm(dim=1)

    bound = AttackDistance(
        lambda model, x, y: attack(to_foolbox(model), x, y, epsilons=None)[1], "ddn"
    )
    back = from_foolbox(theirs)
    report = measure(back, (pixels, target), bounds=[bound], data_range=tuple(theirs.bounds))
    np.testing.assert_allclose(report.norms[2.0]["ddn"], distance, rtol=1e-4)
    margin = measure(net, (inputs, target), input_std=STD).norms[2.0].margin
    np.testing.assert_allclose(report.norms[2.0].margin, margin, rtol=1e-4)

    preprocessed = foolbox.PyTorchModel(
        net, bounds=(0, 1), preprocessing={"mean": list(MEAN), "std": list(STD), "axis": -3}
    )
    again = measure(from_foolbox(preprocessed), (pixels, target))
    np.testing.assert_allclose(again.norms[2.0].margin, margin, rtol=1e-4)
    with pytest.raises(ValueError, match="mean and std, or neither"):
        to_foolbox(net, mean=MEAN)
    with pytest.raises(TypeError, match=r"takes a foolbox\.PyTorchModel, got Sequential"):
        from_foolbox(net)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_autoattack_both_ways():
    library = pytest.importorskip("pyautoattack", reason="needs pyautoattack: extra attacks")
    _, model, _, pixels, target = normalised_problem()

    def attack(net, x, y):
        auto = library.AutoAttack(
            net, norm="L2", eps=0.3, seed=0, version="custom", attacks=["apgd-ce", "fab"]
        )
        return auto.run_standard_evaluation(x, y, batch_size=len(y))[0]

    found = attack(model, pixels, target)
    held = model(found).argmax(dim=1) == target
    ours = robust_accuracy(model, (pixels, target), 0.3, attacks=["gap"], data_range=(0, 1))
    assert held.float().mean() <= ours.curve("gap")[0] + 1e-6

    report = measure(
        model, (pixels, target), bounds=[AttackDistance(attack, "auto")], data_range=(0.0, 1.0)
    )
    distance = report.norms[2.0]["auto"]
    assert np.isfinite(distance).sum() == (~held).sum() > 0
    assert (distance[np.isfinite(distance)] <= 0.3 + 1e-4).all()


@pytest.mark.filterwarnings("ignore")
def test_adv_lib_both_ways():
    attacks = pytest.importorskip(
        "adv_lib.attacks", reason="needs adv-lib: extra adv-lib", exc_type=ImportError
    )
    _, model, _, pixels, target = normalised_problem()
    ddn = AttackDistance(partial(attacks.ddn, steps=60), "ddn", {"steps": 60})
    report = measure(
        model, (pixels, target), bounds=["minimum_distance", ddn], data_range=(0.0, 1.0)
    ).norms[2.0]
    assert np.isfinite(report["ddn"]).all()
    assert (report["ddn"] >= 0.999 * report["minimum_distance"]).mean() > 0.5
    assert (report["ddn"] <= 1.5 * report["minimum_distance"]).all()
