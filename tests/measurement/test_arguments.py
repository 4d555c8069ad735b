"""Numbers, ranges and data in the forms in which users have them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from margin_ext import AverageMarginLoss, MarginMonitor, measure, robust_accuracy
from measurement.networks import linear_model

DIMS, CLASSES = 4, 3
NET = linear_model(CLASSES, DIMS)


def data(count: int = 20) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, DIMS, generator=torch.Generator().manual_seed(2)).double()
    return x, torch.arange(count) % CLASSES


@pytest.mark.parametrize(
    "p", [np.int64(2), np.float32(2), np.array(2.0), torch.tensor(2), torch.tensor([2.0]), "2"]
)
def test_norms_of_any_kind(p: Any) -> None:
    assert (measure(NET, data(), p=p).margin == measure(NET, data(), p=2).margin).all()
    assert (
        robust_accuracy(NET, data(), 0.1, p=p).curve() == robust_accuracy(NET, data(), 0.1).curve()
    )


def test_several_norms_of_any_kind() -> None:
    report = measure(NET, data(), p=np.array([1, 2, np.inf]))
    assert list(report.norms) == [1.0, 2.0, math.inf]
    assert list(measure(NET, data(), p=(q for q in ("inf", 2))).norms) == [math.inf, 2.0]


@pytest.mark.parametrize(
    "eps",
    [np.float64(0.1), np.float32(0.1), np.array(0.1), torch.tensor(0.1), np.array([0.1]), [0.1],
     torch.tensor([0.1]), (np.float64(0.1),)],
)  # fmt: skip
def test_radii_of_any_kind(eps: Any) -> None:
    assert robust_accuracy(NET, data(), eps).curve() == robust_accuracy(NET, data(), 0.1).curve()


@pytest.mark.parametrize("eps", ["0.1", ["0.1"], [0.1, "inf"], np.array(["0.1"])])
def test_radii_are_no_texts(eps: Any) -> None:
    with pytest.raises(ValueError, match="eps must be a number or several, got the text"):
        robust_accuracy(NET, data(), eps)


@pytest.mark.parametrize("eps", [b"0.1", bytearray(b"1"), None, True, {}])
def test_radii_are_numbers(eps: Any) -> None:
    with pytest.raises(ValueError, match="eps must"):
        robust_accuracy(NET, data(), eps)


@pytest.mark.parametrize("classes", [CLASSES, 99])
def test_more_classes_than_there_are_mean_all(classes: int) -> None:
    found, wanted = measure(NET, data(), classes=classes), measure(NET, data(), classes="all")
    assert found.margin.tolist() == wanted.margin.tolist()
    x, y = data()
    losses = [AverageMarginLoss(classes=c).run(NET, x, y).loss for c in (classes, "all")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number", [np.int64(7), np.int8(7), torch.tensor(7), 7.0, np.float64(7)])
def test_counts_of_any_kind(number: Any) -> None:
    report = measure(NET, data(), batch_size=number, limit=number)
    assert len(report) == 7
    assert type(report.settings["seed"]) is int


@pytest.mark.parametrize("number", [np.int64(2), torch.tensor(2), np.float32(2)])
def test_classes_and_seeds_of_any_kind(number: Any, tmp_path: Path) -> None:
    file = tmp_path / "partial.npz"
    right = measure(NET, data(), classes=2, seed=2, resume=file)
    report = measure(NET, data(), classes=number, seed=number, signed=np.True_, resume=file)
    assert report.settings == right.settings
    assert json.loads(report.save(tmp_path / "report.json").read_text())["classes"] == 2


def test_reports_with_ranges_of_any_kind_can_be_saved(tmp_path: Path) -> None:
    std, low, high = np.full(4, np.float32(0.5)), np.full(4, -9.0), torch.full((4,), 9.0)
    options: dict[str, Any] = {"input_std": std, "data_range": (low, high)}
    report = measure(NET, data(), resume=tmp_path / "partial.npz", **options)
    saved = json.loads(report.save(tmp_path / "report.json").read_text())
    assert saved["settings"]["data_range"] == [[-9.0] * 4, [9.0] * 4]
    assert len(measure(NET, data(), resume=tmp_path / "partial.npz", **options)) == 20
    robust = robust_accuracy(NET, data(), np.float32(0.1), **options)
    assert json.loads(robust.save(tmp_path / "robust.json").read_text())["count"] == 20


@pytest.mark.parametrize("name", ["batch_size", "limit"])
@pytest.mark.parametrize("number", [0, -1, 2.5, math.nan, math.inf, "ten", True, None.__class__])
def test_what_is_no_count_is_told(name: str, number: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        measure(NET, data(), **{name: number})


@pytest.mark.parametrize("number", [None, True, [True], [None], {}, object(), 1j, "x", [[1.0]]])
def test_what_is_no_number_is_told(number: Any) -> None:
    with pytest.raises(ValueError, match=r"^p must "):
        measure(NET, data(), p=number)
    with pytest.raises(ValueError, match=r"^p must "):
        MarginMonitor(data(), p=number)
    if number is not None:
        with pytest.raises(ValueError, match="norm_bound must "):
            measure(NET, data(), norm_bound=number)
    with pytest.raises(ValueError, match="eps must "):
        robust_accuracy(NET, data(), number)


@pytest.mark.parametrize("std", [0.0, -0.5, math.nan, math.inf, [0.5, 0.5, 0.5, 0.0], np.zeros(4)])
def test_standard_deviations_that_are_none(std: Any) -> None:
    for call in (measure, lambda *a, **k: robust_accuracy(*a, 0.1, **k)):
        with pytest.raises(ValueError, match="input_std must be"):
            call(NET, data(), input_std=std)
    with pytest.raises(ValueError, match="input_std must be"):
        MarginMonitor(data(), input_std=std).epoch(NET, 1)


@pytest.mark.parametrize(
    "std", [np.float32(0.5), np.full(4, 0.5), torch.full((4,), 0.5), [0.5] * 4]
)
def test_standard_deviations_of_any_kind(std: Any) -> None:
    plain = measure(NET, data(), input_std=0.5)
    np.testing.assert_allclose(measure(NET, data(), input_std=std).margin, plain.margin)


@pytest.mark.parametrize(
    "ends", [(1.0, 0.0), (0.0, 0.0), (math.nan, 1.0), (-math.inf, math.inf), (0.0,), 3, "ab"]
)
def test_data_ranges_that_are_none(ends: Any) -> None:
    for call in (measure, lambda *a, **k: robust_accuracy(*a, 0.1, **k)):
        with pytest.raises(ValueError, match="data_range must be"):
            call(NET, data(), data_range=ends)


@pytest.mark.parametrize("factor", [1e-8, 1e-6, 1e6, 1e8])
def test_raw_units(factor: float) -> None:
    x, y = data(40)
    scaled = nn.Linear(DIMS, CLASSES).double()
    scaled.load_state_dict({"weight": NET.weight / factor, "bias": NET.bias})
    bounds = ["minimum_distance", "certified"]
    plain = measure(NET, (x, y), bounds=bounds, p=[2, "inf"])
    report = measure(scaled, (x * factor, y), bounds=bounds, p=[2, "inf"])
    for name, column in plain.columns().items():
        values = report.columns()[name]
        if name.startswith(("margin", "minimum_distance", "certified")):
            values = values / factor
        elif name.startswith("norm"):
            values = values * factor
        np.testing.assert_allclose(values, column, rtol=2e-3, err_msg=name)
    robust = robust_accuracy(NET, (x, y), [0.1, 0.3]).curve()
    assert robust_accuracy(scaled, (x * factor, y), [0.1 * factor, 0.3 * factor]).curve() == robust


class Frame:
    """The little of a pandas DataFrame or Series that counts."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def to_numpy(self) -> Any:
        return self.values


FORMS: dict[str, Any] = {
    "numpy": lambda x, y: (x.numpy(), y.numpy()),
    "float32": lambda x, y: (x.numpy().astype("f4"), y.numpy()),
    "frames": lambda x, y: (Frame(x), Frame(y)),
    "loader of dictionaries": lambda x, y: DataLoader(
        [{"image": a, "label": b} for a, b in zip(x, y, strict=True)], batch_size=7
    ),
    "hugging face": lambda x, y: [
        {"pixel_values": x[:9], "labels": y[:9], "id": "a"},
        {"pixel_values": x[9:], "labels": y[9:]},
    ],
    "numpy batches": lambda x, y: [(x[:9].numpy(), y[:9].numpy()), (x[9:].numpy(), y[9:].numpy())],
    "column of labels": lambda x, y: (x, y[:, None]),
    "labels in floats": lambda x, y: (x, y.double()),
    **{
        f"labels in {kind}": lambda x, y, kind=kind: (x.numpy(), y.numpy().astype(kind))
        for kind in ("u1", "i1", "i2", "i4", "u2")
    },
    "int32": lambda x, y: (x, y.int()),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_data_of_any_form(form: str) -> None:
    x, y = data()
    right = measure(NET, (x, y))
    given = FORMS[form](x, y)
    report = measure(NET, given)
    np.testing.assert_allclose(report.margin, right.margin, rtol=1e-5, atol=1e-6)
    assert (report.target == right.target).all()
    assert robust_accuracy(NET, FORMS[form](x, y), 0.1).accuracy == right.accuracy


def test_batch_fn_takes_what_the_loader_gives() -> None:
    x, y = data()
    right = measure(NET, (x, y))
    triples = TensorDataset(x, torch.arange(20), y)
    options: dict[str, Any] = {"batch_fn": lambda batch: (batch[0], batch[2])}
    assert (measure(NET, DataLoader(triples, batch_size=6), **options).margin == right.margin).all()
    assert robust_accuracy(NET, triples, 0.1, **options).accuracy == right.accuracy
    named = [SimpleNamespace(x=x, y=y)]
    assert (measure(NET, named, batch_fn=lambda b: (b.x, b.y)).margin == right.margin).all()
    monitor = MarginMonitor({"train": triples}, **options)
    assert monitor.epoch(NET, 1)["train"].average_margin == right.average_margin


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda x, y: TensorDataset(x, y, y), TypeError, "pass batch_fn="),
        (lambda x, y: [{"a": x, "b": y}], TypeError, "which field of a batch holds the inputs"),
        (lambda x, y: [{"x": x, "image": x, "y": y}], TypeError, "which field"),
        (lambda x, y: {"x": x, "y": y}, TypeError, "data must hold inputs and target"),
        (lambda x, y: x, TypeError, "data must hold inputs and target"),
        (lambda x, y: "mnist", TypeError, "data must be"),
        (
            lambda x, y: (x, y + 0.5),
            ValueError,
            "whole numbers, class indices, got 0.5 at sample 0",
        ),
        (lambda x, y: (x, y - 1), ValueError, "must lie in 0..2, got -1"),
        (lambda x, y: (x, nn.functional.one_hot(y)), ValueError, r"target \[B\]"),
        (lambda x, y: (x.numpy().astype(object), y), TypeError, "cannot become a tensor"),
        (lambda x, y: ((x * 9).to(torch.uint8), y), TypeError, "for bytes, inputs.float"),
        (lambda x, y: (x.to_sparse(), y), TypeError, "dense"),
        (lambda x, y: (list(x), list(y)), TypeError, "pair"),
    ],
)
def test_data_that_is_not_clear_is_told(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(NET, given(*data()))


class Drawing(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from generators of the data set's own."""

    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(3)
        self.numpy = np.random.default_rng(3)
        self.legacy = np.random.RandomState(3)
        self.python = random.Random(3)
        self.transforms = [lambda x: x, self.python]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(DIMS, generator=self.torch).double()
        noise = noise + self.numpy.random() + self.legacy.rand() + self.python.random()
        noise = noise + random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return noise, torch.tensor(index % CLASSES)

    def states(self) -> str:
        parts = (
            self.torch.get_state().tolist(), self.numpy.bit_generator.state,
            str(self.legacy.get_state()), self.python.getstate(), random.getstate(),
            str(np.random.get_state()), torch.get_rng_state().tolist(),  # noqa: NPY002
        )  # fmt: skip
        return str(parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_random_states_are_left_as_they_were(workers: int) -> None:
    dataset = Drawing()
    shared = torch.Generator().manual_seed(5)
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(7))
    loader = DataLoader(
        dataset, batch_size=4, sampler=sampler, generator=shared, num_workers=workers
    )
    before = dataset.states(), shared.get_state(), sampler.generator.get_state()
    measure(NET, loader)
    robust_accuracy(NET, loader, 0.1)
    MarginMonitor({"test": loader}).epoch(NET, 1)
    with pytest.raises(ValueError, match="outside the stated data range"):
        measure(NET, loader, data_range=(0.0, 1e-9))
    after = dataset.states(), shared.get_state(), sampler.generator.get_state()
    assert after[0] == before[0]
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[2], before[2])


def test_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    right = measure(NET, data(), progress=None)
    assert (measure(NET, data(), progress=True).margin == right.margin).all()
    robust_accuracy(NET, data(), 0.1)
