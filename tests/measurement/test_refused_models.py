"""Models that cannot be measured are refused, and the message names the reason."""

from __future__ import annotations

import functools
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from margin_ext import measure, robust_accuracy
from measurement.training_mode import CLASSES, DIMS, labelled, normalised_linear


def test_a_module_that_cannot_be_found_is_refused_before_it_runs() -> None:
    net = normalised_linear()
    data = labelled(net)
    before = net[0].running_mean.clone()  # type: ignore[union-attr, operator]
    nets = iter(lambda: net, None)  # an iterator tells nobody what it gives

    def hidden(x: Tensor) -> Tensor:
        z: Tensor = next(nets)(x)
        return z

    with pytest.raises(ValueError, match="runs a Sequential in training mode"):
        measure(hidden, data)
    assert torch.equal(net[0].running_mean, before)  # type: ignore[arg-type]
    net.eval()
    assert measure(hidden, data).accuracy == 1.0


class Noisy(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(DIMS, CLASSES).double()
        self.how = how
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = {
            "dropout": lambda: nn.functional.dropout(x, 0.1) - x,
            "torch": lambda: 0.01 * torch.randn_like(x),
            "numpy": lambda: 0.01 * float(np.random.rand()),  # noqa: NPY002
            "python": lambda: 0.01 * random.random(),
            "state": lambda: 0.01 * self.calls,
        }[self.how]()
        z: Tensor = self.layer(x + noise)
        return z


@pytest.mark.parametrize("how", ["dropout", "torch", "numpy", "python", "state"])
def test_random_models_are_named(how: str) -> None:
    data = torch.rand(12, DIMS).double(), torch.zeros(12, dtype=torch.int64)
    for call in (measure, functools.partial(robust_accuracy, eps=0.1)):
        with pytest.raises(ValueError, match="other logits when it runs again"):
            call(Noisy(how), data)


class Dependent(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(DIMS, CLASSES).double()
        self.norm = nn.BatchNorm1d(DIMS, track_running_stats=False).double()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = {
            "batch norm": lambda: self.norm(x),
            "functional": lambda: nn.functional.batch_norm(x, None, None, training=True),
            "mean": lambda: x - x.mean(dim=0),
            "largest": lambda: x / x.abs().amax(),
            "attention": lambda: torch.softmax(x @ x.T, dim=1) @ x,
            "neighbour": lambda: x + 0.1 * x.roll(1, dims=0),
        }[self.how]()
        z: Tensor = self.layer(h)
        return z


@pytest.mark.parametrize("size", [1, 2, 20])
@pytest.mark.parametrize(
    "how", ["batch norm", "functional", "mean", "largest", "attention", "neighbour"]
)
def test_models_whose_samples_depend_on_each_other_are_named(how: str, size: int) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(20, DIMS).double(), torch.arange(20) % CLASSES
    for call in (measure, functools.partial(robust_accuracy, eps=0.1)):
        with pytest.raises(ValueError, match=r"other samples are in its batch|fails on inputs"):
            call(Dependent(how), (x, y), batch_size=size)


@pytest.mark.parametrize("kind", [nn.Softmax(1), nn.Sigmoid()])
def test_probabilities_are_named(kind: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(DIMS, CLASSES), kind).double()
    x, y = torch.randn(20, DIMS).double(), torch.arange(20) % CLASSES
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        measure(net, (x, y))
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        robust_accuracy(net, (x, y), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(net, (x, y), logits_fn=torch.log)
        measure(nn.Sequential(net[0], nn.LogSoftmax(1)), (x, y))


@pytest.mark.parametrize("how", ["sub_", "data", "numpy", "index"])
def test_models_that_change_their_inputs_are_named(how: str) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(DIMS, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            if how == "sub_":
                x.sub_(0.5)
            elif how == "data":
                x.data.sub_(0.5)
            elif how == "numpy":
                x.detach().numpy()[:] -= 0.5
            else:
                x[:, 0] = 0.0
            z: Tensor = self.layer(x)
            return z

    x, y = torch.rand(10, DIMS).double(), torch.zeros(10, dtype=torch.int64)
    before = x.clone()
    for call in (measure, functools.partial(robust_accuracy, eps=0.1)):
        with pytest.raises(ValueError, match="changes its inputs in place"):
            call(InPlace(), (x, y))
    assert torch.equal(x, before)


def test_a_failing_model_is_told_in_one_line() -> None:
    x, y = torch.rand(4, DIMS + 1).double(), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"fails on inputs \[4, 6\] in torch.float64.*RuntimeErr"):
        measure(nn.Linear(DIMS, CLASSES).double(), (x, y))
    with pytest.raises(ValueError, match="KeyError"):
        measure(lambda v: {}["logits"], (x, y))


def test_parameters_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    data = torch.rand(3, DIMS), torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        made = nn.Linear(DIMS, CLASSES)
    for model, message in (
        (made, "is an inference tensor"),
        (nn.LazyLinear(CLASSES), "has no values yet"),
        (nn.Linear(DIMS, CLASSES, device="meta"), "is on the meta device"),
    ):
        for file in (None, tmp_path / "partial.npz"):
            with pytest.raises(ValueError, match=f"the parameter weight of .* {message}"):
                measure(model, data, resume=file)


def test_a_half_precision_model_with_wider_data_is_told() -> None:
    x, y = torch.randn(4, DIMS), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"in torch.float32, of a model in torch.bfloat16"):
        measure(nn.Linear(DIMS, CLASSES).bfloat16(), (x, y))
    measure(nn.Linear(DIMS, CLASSES).bfloat16(), (x.bfloat16(), y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_model_traced_in_training_mode_is_refused_and_left_as_it_was() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    traced = torch.jit.trace(net, x, check_trace=False)
    before = {name: tensor.clone() for name, tensor in traced.state_dict().items()}
    with pytest.raises(ValueError, match="other samples are in its batch"):
        measure(traced, (x, y))
    for name, tensor in traced.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 7])
def test_half_precision_is_no_dependence_between_samples(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.GELU()] * 6
    net = nn.Sequential(nn.Linear(DIMS, 64), *layers, nn.Linear(64, CLASSES)).to(dtype)
    x, y = torch.randn(14, DIMS).to(dtype), torch.arange(14) % CLASSES
    assert len(measure(net, (x, y), batch_size=size)) == 14
