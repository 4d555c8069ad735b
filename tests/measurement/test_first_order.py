from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from margin_ext.measurement import measure
from margin_ext.reference import linear_margin
from measurement.networks import linear_model, relu_network


def data(count: int, dims: int, classes: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def brute_force(model: nn.Module, x: Tensor, y: Tensor, p: float, top: int) -> Tensor:
    """Sample by sample and class by class with torch.norm."""
    q = {1: math.inf, 2: 2.0, math.inf: 1.0}.get(p) or p / (p - 1)
    margins = []
    for sample, label in zip(x, y.tolist(), strict=True):
        point = sample.unsqueeze(0).requires_grad_()
        z = model(point)[0]
        others = [k for k in z.argsort(descending=True, stable=True).tolist() if k != label]
        ratios = []
        for k in others[:top]:
            (grad,) = torch.autograd.grad(z[label] - z[k], point, retain_graph=True)
            ratios.append(((z[label] - z[k]) / torch.norm(grad, p=q)).item())
        margins.append(min(ratios))
    return torch.tensor(margins, dtype=torch.float64)


@pytest.mark.parametrize("p", [1, 2, 3, "inf"])
def test_linear_models_exactly(p: float | str) -> None:
    model = linear_model()
    x, y = data(40, 12, 5)
    report = measure(model, (x, y), p=p)
    expected = linear_margin(model.weight, model.bias, x, y, p=p).detach()
    torch.testing.assert_close(torch.from_numpy(report.margin), expected)
    assert report.exact
    assert report.minimum_margin == pytest.approx(float(expected.min()))
    assert report.average_margin == pytest.approx(float(expected.mean()))
    assert report.accuracy == pytest.approx(float((model(x).argmax(1) == y).double().mean()))


@pytest.mark.parametrize(("rule", "top"), [("all", 6), ("runner_up", 1), (2, 2), (100, 6)])
@pytest.mark.parametrize("p", [1, 2, 1.5, math.inf])
def test_mlps_against_brute_force(rule: str | int, top: int, p: float) -> None:
    model = relu_network((8, 16, 12, 7))
    x, y = data(25, 8, 7)
    report = measure(model, (x, y), p=p, classes=rule)  # type: ignore[arg-type]
    expected = brute_force(model, x, y, p, top)
    torch.testing.assert_close(torch.from_numpy(report.margin), expected, rtol=1e-9, atol=1e-12)


def test_several_norms_in_one_pass_are_those_of_single_passes() -> None:
    model = relu_network((8, 16, 7))
    batch = data(30, 8, 7)
    together = measure(model, batch, p=[2, "inf", 1])
    for p in (2, "inf", 1):
        alone = measure(model, batch, p=p)
        assert (together[p].margin == alone.margin).all()
        assert (together[p].nearest_class == alone.first.nearest_class).all()


def test_unsigned_margins_are_measured_from_the_prediction() -> None:
    model = relu_network((8, 16, 7))
    x, y = data(30, 8, 7)
    unsigned = measure(model, (x, y), signed=False)
    from_prediction = measure(model, (x, model(x).argmax(dim=1)))
    assert (unsigned.margin == from_prediction.margin).all()
    assert (unsigned.margin >= 0).all()
    signed = measure(model, (x, y))
    assert (unsigned.correct == signed.correct).all()
    assert (signed.margin[signed.correct] == unsigned.margin[signed.correct]).all()
    assert (signed.margin[~signed.correct] < 0).all()


def test_batching_does_not_matter() -> None:
    model = relu_network((8, 16, 7))
    x, y = data(50, 8, 7)
    whole = measure(model, (x, y))
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    for other in (
        measure(model, loader),
        measure(model, TensorDataset(x, y)),
        measure(model, loader, batch_size=3),
        measure(model, loader, max_memory=20_000),
        measure(model, [(x[:20], y[:20]), (x[20:], y[20:])]),
    ):
        torch.testing.assert_close(
            torch.from_numpy(other.margin), torch.from_numpy(whole.margin), rtol=1e-12, atol=0
        )
    assert len(measure(model, loader, limit=33)) == 33


def test_pixel_units() -> None:
    model = nn.Sequential(nn.Flatten(), relu_network((12, 16, 5)))
    std, mean = torch.tensor([0.5, 0.2, 2.0]).double(), torch.tensor([0.1, 0.0, 1.0]).double()

    def in_pixels(pixels: Tensor) -> Tensor:
        return model((pixels - mean[:, None, None]) / std[:, None, None])

    x, y = data(20, 12, 5)
    x = x.reshape(20, 3, 2, 2)
    normalised = measure(model, (x, y), p=[2, "inf"], input_std=std)
    pixels = measure(in_pixels, (x * std[:, None, None] + mean[:, None, None], y), p=[2, "inf"])
    for p in (2, "inf"):
        torch.testing.assert_close(
            torch.from_numpy(normalised[p].margin), torch.from_numpy(pixels[p].margin)
        )


def test_a_norm_bound_saves_gradients_and_changes_nothing() -> None:
    model = linear_model(classes=30, dims=40)
    x, y = data(6, 40, 30)
    weight = model.weight
    bound = torch.cdist(weight, weight).max().item()
    plain = measure(model, (x, y), signed=False)
    pruned = measure(model, (x, y), signed=False, norm_bound=bound)
    assert (plain.gradients == 29).all()
    assert (pruned.gradients < 29).all()
    torch.testing.assert_close(pruned.margin, plain.margin, rtol=1e-12, atol=0)
    assert (pruned.first.nearest_class == plain.first.nearest_class).all()


def test_several_classes_share_a_backward_pass_but_not_where_the_memory_is_limited() -> None:
    passes: list[tuple[int, ...]] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear_model(classes=30, dims=40)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.inner(x)
            if z.requires_grad:
                z.register_hook(lambda grad: passes.append(tuple(grad.shape)))
            return z

    x, y = data(6, 40, 30)
    together = measure(Counting(), (x, y))
    assert len(passes) < 5
    passes.clear()
    alone = measure(Counting(), (x, y), max_memory="1GB")
    assert len(passes) >= 29
    torch.testing.assert_close(together.margin, alone.margin, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_norm_bound_changes_no_margin_of_misclassified_samples(seed: int) -> None:
    model = relu_network((6, 20, 8), seed)
    x, y = data(40, 6, 8, seed)
    plain = measure(model, (x, y))
    # Every margin counts, so that no class is skipped for another sample's sake.
    for one in range(40):
        sample = x[one : one + 1], y[one : one + 1]
        bound = measure(model, sample, norm_bound=1e3)
        torch.testing.assert_close(float(bound.margin[0]), float(plain.margin[one]))


def test_a_norm_bound_that_is_contradicted_is_refused() -> None:
    model = relu_network((6, 20, 8))
    batch = data(20, 6, 8)
    largest = float(measure(model, batch).first.norm.max())
    with pytest.raises(ValueError, match=r"norm_bound is .* for l2, and a gradient of norm"):
        measure(model, batch, norm_bound=largest / 2)
    measure(model, batch, norm_bound=20 * largest)


def test_ties_are_misclassified_and_have_margin_zero() -> None:
    model = nn.Linear(3, 4).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(4, 3))
        model.bias.zero_()
    report = measure(model, (torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.tensor([0])))
    assert not report.correct[0]
    assert report.margin[0] == 0.0


def test_samples_without_gradient_are_left_out_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        model[2].bias.copy_(torch.tensor([0.1, 0.0, 0.0]))
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double()
    with pytest.warns(UserWarning, match="1 of 2 samples have no input gradient"):
        report = measure(model, (x, torch.tensor([0, 0])))
    assert math.isinf(report.margin[1])
    assert report.summary().infinite == 1
    assert report.average_margin == pytest.approx(float(report.margin[0]))
    assert "left out" in str(report)


class Reckless(nn.Module):
    """Returns whatever it is told to."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output(self.layer(x)) if callable(self.output) else self.output


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda z: (z, z), TypeError, "tensor of logits"),
        (lambda z: z.unsqueeze(1), ValueError, r"logits \[B, C\].*got \[10, 1, 3\]"),
        (lambda z: z[:, :1], ValueError, "C >= 2"),
        (lambda z: z[:5], ValueError, "B = 10"),
        (lambda z: z * math.nan, ValueError, "NaN or infinite logits"),
        (lambda z: z.detach(), ValueError, "do not depend on the inputs"),
        (torch.zeros(10, 3), ValueError, "do not depend on the inputs"),
        (lambda z: z * 0 + torch.arange(3), ValueError, "gradient .* is 0 on all 10 samples"),
        (lambda z: z.long(), TypeError, "floating"),
    ],
)
def test_models_that_do_not_fit(output: object, error: type[Exception], message: str) -> None:
    x, y = data(10, 4, 3)
    with pytest.raises(error, match=message):
        measure(Reckless(output), (x, y))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"p": 0.5}, ValueError, "p must be"),
        ({"p": []}, ValueError, "at least one"),
        ({"classes": "some"}, ValueError, "classes must be"),
        ({"classes": 0}, ValueError, "classes must be"),
        ({"data_range": (-1.0, 1.0)}, ValueError, r"outside the stated data range"),
        ({"data_range": (1.0, 0.0)}, ValueError, r"\(lowest, highest\)"),
        ({"max_memory": "much"}, ValueError, "max_memory"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"limit": 0}, ValueError, "limit"),
        ({"norm_bound": -1.0}, ValueError, "norm_bound"),
        ({"bounds": ["magic"]}, ValueError, "bounds must be"),
        ({"bounds": ["minimum_distance"], "p": 3}, ValueError, "p = 1, p = 2 and p = inf"),
    ],
)
def test_arguments_that_do_not_fit(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure(linear_model(3, 4), data(10, 4, 3), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ((torch.ones(2, 4).long(), torch.zeros(2).long()), TypeError, "floating"),
        ((torch.ones(2, 4).double(), torch.tensor([0.0, 0.5])), ValueError, "whole numbers"),
        ((torch.ones(2, 4).double(), torch.tensor([0.0, math.nan])), ValueError, "whole numbers"),
        ((torch.ones(2, 4).double(), torch.tensor([0, 3])), ValueError, "0..2"),
        ((torch.ones(2, 4).double(), torch.zeros(3).long()), ValueError, "inputs must be"),
        ((torch.ones(0, 4).double(), torch.zeros(0).long()), ValueError, "no samples"),
        ((torch.full((2, 4), math.nan), torch.zeros(2).long()), ValueError, "NaN"),
        ([(1, 2, 3)], TypeError, "pair"),
        (17, TypeError, "data must be"),
    ],
)
def test_data_that_does_not_fit(samples: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(linear_model(3, 4), samples)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model = model.double()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    x, y = data(16, 4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.no_grad():
        measure(model, (x, y), bounds=["sampled", "minimum_distance"])
    with pytest.raises(ValueError, match="NaN"):
        measure(model, [(x, y), (x * math.nan, y)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model] == [True, True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(linear_model(3, 4), data(10, 4, 3))
    assert capfd.readouterr() == ("", "")
