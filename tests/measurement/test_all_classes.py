"""``measure`` with many classes: the report, the memory, the progress, and what is resumed."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from margin_ext import measure
from margin_ext.bounds import AllClasses
from margin_ext.measurement import measuring
from margin_ext.measurement.memory import PeakMemory, parse_memory
from measurement.networks import relu_network

CLASSES = 160
SKETCH = AllClasses(search="sketch")


def many_classes(count: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    model = relu_network((20, 30, CLASSES))
    x = torch.randn(count, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = model(x).argmax(dim=1).detach()
    y[::3] = torch.arange(len(y[::3]))
    return model, x, y


def test_many_classes_are_searched_by_sketches_and_few_are_not() -> None:
    model, x, y = many_classes()
    report = measure(model, (x, y))
    every = measure(model, (x, y), classes=AllClasses(search="exhaustive"))
    assert (report.directions == 48).all()
    assert report.classes == every.classes == "all"
    assert (report.gradients < every.gradients).any()
    assert (every.gradients == CLASSES - 1).all()
    assert (every.directions == 0).all()
    np.testing.assert_allclose(report.margin, every.margin, rtol=1e-12)
    assert (report.first.nearest_class == every.first.nearest_class).all()
    # Three norms need three sketches, which so few classes are not worth.
    assert (measure(model, (x, y), p=[2, "inf", 3]).directions == 0).all()
    assert (measure(model, (x, y), classes=3).directions == 0).all()


def test_the_report_says_how_sure_it_is() -> None:
    model, x, y = many_classes()
    report = measure(model, (x, y), classes=AllClasses(search="sketch", failure=1e-9))
    text = str(report)
    assert "those of all classes with probability 1 - 1e-09 or more for each sample" in text
    assert f"48 random directions and {report.gradients.mean():.1f} classes' gradients" in text
    assert report.to_dict(samples=False)["settings"]["search"]["failure"] == 1e-9
    exhaustive = measure(model, (x, y), classes=AllClasses(search="exhaustive"))
    assert "probability" not in str(exhaustive)


def test_the_report_says_what_fewer_classes_would_miss() -> None:
    model, x, y = many_classes(40)
    report = measure(model, (x, y))
    for k in (1, 3, 10):
        few = measure(model, (x, y), classes=k)
        larger = few.margin > report.margin * (1 + 1e-9 * np.sign(report.margin))
        assert report.first.share_beyond(k) == pytest.approx(larger.mean())
    share = report.first.share_beyond(1)
    assert share > 0
    assert f"too large a margin on {share:.1%} with the runner-up" in str(report)
    assert "runner-up" not in str(measure(model, (x, y), classes="runner_up"))


def test_differences_and_what_has_no_sketch_are_told() -> None:
    model, x, y = many_classes()
    by_differences = AllClasses(search="sketch", derivatives="differences")
    with pytest.warns(UserWarning, match="finite differences, as asked for"):
        report = measure(model, (x, y), classes=by_differences)
    assert "estimated error of finite differences" in str(report)
    assert report.by_differences.all()
    with pytest.warns(UserWarning, match="every class took a backward pass of its own"):
        report = measure(model, (x, y), p=1)
    assert (report.directions == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(relu_network((20, 10)), (x, y % 10), p=1)


@pytest.mark.parametrize("memory", ["1MB", "3MB"])
def test_the_memory_is_kept(memory: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(8 * 12 * 12, CLASSES),
    )  # fmt: skip
    data = torch.rand(24, 1, 12, 12), torch.arange(24)
    free = measure(model, data, classes=SKETCH)
    with PeakMemory() as used:
        kept = measure(model, data, classes=SKETCH, max_memory=memory)
    assert used.peak < parse_memory(memory)
    np.testing.assert_allclose(kept.margin, free.margin, rtol=2e-4)
    assert (kept.directions == 48).all()


@pytest.mark.parametrize("classes", [SKETCH, AllClasses(search="exhaustive")])
def test_the_bar_moves_within_a_batch(classes: AllClasses, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[float] = []

    class Bar:
        def update(self, n: float) -> None:
            moved.append(n)

        def close(self) -> None:
            pass

    monkeypatch.setattr(measuring, "progress_bar", lambda *_: Bar())
    model, x, y = many_classes()
    measure(model, (x, y), classes=classes)
    assert sum(moved) == len(x)
    assert len(moved) > 4
    assert min(moved) > 0


def test_a_run_goes_on_with_the_same_search_only(tmp_path: Path) -> None:
    model, x, y = many_classes()
    file = tmp_path / "partial.npz"
    measure(model, (x, y), limit=5, resume=file)
    whole = measure(model, (x, y), resume=file)
    alone = measure(model, (x, y))
    for name, column in alone.columns().items():
        assert np.allclose(whole.columns()[name], column), name
    with pytest.raises(ValueError, match="results with other search"):
        measure(model, (x, y), resume=file, classes=AllClasses(failure=1e-3))


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_thousand_classes(p: float) -> None:
    """No answer of 100 is another one than that of the exhaustive way, at C = 1000."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 1000))
    x = torch.randn(100, 40)
    y = model(x).argmax(dim=1)
    y[:20] = torch.arange(20)
    options: dict[str, Any] = {"p": p, "batch_size": 50}
    found = measure(model, (x, y), classes="all", **options)
    every = measure(model, (x, y), classes=AllClasses(search="exhaustive"), **options)
    assert (found.directions > 0).all()
    assert (found.first.nearest_class == every.first.nearest_class).all()
    np.testing.assert_allclose(found.margin, every.margin, rtol=1e-5)
