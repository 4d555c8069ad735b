"""The passes of margin="distance": where they go, what they leave alone, what is remembered."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gradient_modes.small_problems import Recorded, data, gradients, linear, smooth_net
from margin_ext import AdversarialTraining, AverageMarginLoss, Distance, logit_gap
from margin_ext.threat import ThreatModel

BOX = (-2.0, 2.0)


def passes(mode: Distance, net: nn.Module, x, y, **options) -> list[torch.Tensor]:
    model = Recorded(net)
    criterion = AverageMarginLoss(**{"tau": 1.5, "mu": 0.7, **options}, margin=mode)
    criterion.run(model, x, y)  # the model is tried out, once
    model.seen.clear()
    criterion.run(model, x, y).loss.backward()
    return model.seen


@pytest.mark.parametrize("p", [1, 2, "inf"])
@pytest.mark.parametrize("form", ["cross_entropy", "envelope"])
def test_points_stay_in_radius_and_range(p, form):
    net = smooth_net()
    x, y = data(net)
    x = x.clamp(*BOX)
    threat = ThreatModel(p=float(p))
    for noise, count in ((0.0, 3), (1.0, 4)):
        mode = Distance(form=form, steps=2, radius=0.8, noise=noise, data_range=BOX)
        seen = passes(mode, net, x, y, p=p)
        assert len(seen) == 1 + mode.reruns == count
        for points in seen:
            assert float(points.min()) >= BOX[0]
            assert float(points.max()) <= BOX[1]
        for points, limit in zip(seen[1:], [1.5 * noise] * (count - 3) + [1.2] * 2, strict=True):
            assert float(threat.distance(points, x).max()) <= limit * (1 + 1e-9)


def test_the_cross_entropy_is_taken_beyond_the_own_boundary():
    model, x, y = linear()
    exact = AverageMarginLoss().run(model, x, y).margin
    radius = float(exact.abs().median()) * 1.2
    for misclassified in ("toward", "attack"):
        mode = Distance(steps=1, noise=0.0, misclassified=misclassified)
        options = {"tau": radius, "mu": 0.8}
        point = passes(mode, model, x, y, **options)[-1]
        length = (1.1 * exact.abs().clamp_max(radius) + 0.2 * radius).clamp_max(radius)
        side = torch.where(exact < 0, -1.0, 1.0)
        if misclassified == "attack":
            length = torch.where(exact < 0, radius, length)
            side = torch.ones_like(side)
        torch.testing.assert_close((point - x).norm(dim=1), length)
        gap = logit_gap(model(point), y).gap
        norm = logit_gap(model(x), y).gap / exact
        torch.testing.assert_close(gap, norm * (exact - side * length))
        out = AverageMarginLoss(**options, margin=mode).run(model, x, y)
        clean, there = (nn.functional.cross_entropy(model(at), y) for at in (x, point))
        torch.testing.assert_close(out.loss, 0.2 * clean + 0.8 * there)
        torch.testing.assert_close(out.statistics.regularizer, (there - clean).detach())
        torch.testing.assert_close(
            gradients(out.loss, model), gradients(0.2 * clean + 0.8 * there, model)
        )
        peer = AdversarialTraining(
            eps=radius, steps=1, noise=0.0, length="own", misclassified=misclassified, clean=0.2,
            threat=ThreatModel(p=2),
        )  # fmt: skip
        torch.testing.assert_close(peer.run(model, x, y).loss, out.loss)


def test_noise_is_new_in_each_step_and_repeats_with_the_seed():
    net = smooth_net()
    x, y = data(net)
    criterion = AverageMarginLoss(margin="distance", tau=1.0)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(float(criterion.run(net, x, y).loss.detach()))
    assert found[0] == found[1] != found[2]

    def two() -> bool:
        return torch.equal(criterion.run(net, x, y).loss, criterion.run(net, x, y).loss)

    assert not two()
    criterion.eval()
    assert two()


def test_layers_keep_their_state_and_masks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 4))
    x, y = torch.randn(10, 6), torch.randint(4, (10,))
    for form in ("cross_entropy", "envelope"):
        model, twin = copy.deepcopy(net), copy.deepcopy(net)
        torch.manual_seed(1)
        criterion = AverageMarginLoss(tau=1.0, margin=Distance(form=form))
        criterion.run(model, x, y).loss.backward()
        torch.manual_seed(1)
        twin(x)
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, theirs)
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_search_starts_where_the_last_one_ended():
    net = smooth_net()
    x, y = data(net)
    indices = torch.arange(30) * 2 + 1
    mode = Distance(form="envelope", steps=1, noise=0.0, memory=True)
    criterion = AverageMarginLoss(tau=2.0, margin=mode)
    other = AverageMarginLoss(tau=2.0, margin=Distance(form="envelope", steps=1, noise=0.0))
    with pytest.raises(ValueError, match=r"needs the indices.*criterion\.margin\.samples"):
        criterion.run(net, x, y)
    for steps in (1, 2, 3):
        with criterion.margin.samples(indices):
            found = criterion.run(net, x, y)
        other.margin = Distance(form="envelope", steps=steps, noise=0.0)
        wanted = other.run(net, x, y)
        torch.testing.assert_close(found.margin, wanted.margin)
        torch.testing.assert_close(found.loss, wanted.loss)
    offsets = criterion.margin.state_dict()["offsets"]
    assert offsets.shape == (60, 6)
    assert not bool(offsets[::2].any())
    again = AverageMarginLoss(
        tau=2.0, margin=Distance(form="envelope", steps=1, noise=0.0, memory=True)
    )
    again.margin.load_state_dict({"offsets": offsets.clone()})
    with again.margin.samples(indices[:7]), criterion.margin.samples(indices[:7]):
        torch.testing.assert_close(
            again.run(net, x[:7], y[:7]).loss, criterion.run(net, x[:7], y[:7]).loss
        )
    # A validation neither needs nor changes it.
    kept = criterion.margin.state_dict()["offsets"].clone()
    with torch.no_grad():
        criterion.run(net, x, y)
    assert torch.equal(criterion.margin.state_dict()["offsets"], kept)
    with criterion.margin.samples(indices), pytest.raises(ValueError, match="one for each of 7"):
        criterion.run(net, x[:7], y[:7])


def test_a_search_that_overflowed_is_not_remembered():
    net = smooth_net()
    x, y = data(net)
    criterion = AverageMarginLoss(margin=Distance(memory=True), tau=2.0, mu=0.8)
    indices = torch.arange(30)
    bad = x.clone()
    bad[3, 0] = math.inf
    with criterion.margin.samples(indices):
        criterion.run(net, bad, y)
        assert bool(criterion.margin.state_dict()["offsets"].isfinite().all())
        assert bool(criterion.run(net, x, y).loss.isfinite())
    with (
        criterion.margin.samples(indices - 1),
        pytest.raises(ValueError, match="indices of samples must be at least 0, got -1"),
    ):
        criterion.run(net, x, y)


@pytest.mark.parametrize(
    ("indices", "told"),
    [
        (torch.arange(30.0), "torch.float32"),
        (torch.ones(30, dtype=torch.bool), "torch.bool"),
        (list(range(30)), "list"),
        (torch.arange(30).numpy(), "ndarray"),
    ],
)
def test_indices_of_the_memory_are_whole_numbers(indices, told):
    net = smooth_net()
    x, y = data(net)
    criterion = AverageMarginLoss(margin=Distance(memory=True), tau=2.0, mu=0.8)
    with (
        criterion.margin.samples(indices),
        pytest.raises(TypeError, match=f"must be a tensor .*got {told}"),
    ):
        criterion.run(net, x, y)


def test_a_memory_of_other_data_is_refused():
    net, other = smooth_net(), nn.Linear(4, 4).double()
    x, y = data(net)
    criterion = AverageMarginLoss(margin=Distance(memory=True), tau=2.0, mu=0.8)
    with criterion.margin.samples(torch.arange(30)):
        criterion.run(net, x, y)
        with pytest.raises(ValueError, match=r"samples of shape \[6\], got \[4\]"):
            criterion.run(other, x[:, :4], y)
